// Drives the thread pool through every hand-over, for the thread sanitizer; exits 1 on a wrong sum.
#include <chrono>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

namespace {

// Plain memory, so that a hand-over without order is a race: each loop reads what other threads
// wrote in the loop before.
bool chained_loops(aperto::ThreadPool& pool, int loops) {
  const size_t sizes[] = {1, 2, 3, 7, 64, 1000};
  for (const size_t size : sizes) {
    std::vector<long> values(size);
    std::vector<long> by_thread(pool.num_threads());
    for (int loop = 0; loop < loops; ++loop) {
      pool.parallel_for(size, [&](size_t item, int thread) {
        ++values[item];
        ++by_thread[thread];
      });
      pool.parallel_for(size, [&](size_t item, int thread) {
        by_thread[thread] += values[size - 1 - item] == loop + 1 ? 0 : 1 << 20;
      });
    }
    if (std::accumulate(values.begin(), values.end(), 0L) != static_cast<long>(size) * loops ||
        std::accumulate(by_thread.begin(), by_thread.end(), 0L) !=
            static_cast<long>(size) * loops) {
      std::fprintf(stderr, "%d threads, %zu items: an item was lost, repeated or stale\n",
                   pool.num_threads(), size);
      return false;
    }
  }
  return true;
}

// An exception reaches the caller, and the pool works on.
bool throwing_loop(aperto::ThreadPool& pool) {
  try {
    pool.parallel_for(100, [](size_t item, int) {
      if (item % 10 == 5) throw std::runtime_error("planned");
    });
  } catch (const std::runtime_error&) {
    return true;
  }
  std::fprintf(stderr, "%d threads: the exception was lost\n", pool.num_threads());
  return false;
}

}  // namespace

int main() {
  bool good = true;
  for (const int threads : {1, 2, 3, 8}) {
    aperto::ThreadPool pool(threads);
    good &= chained_loops(pool, 200);
    good &= throwing_loop(pool);
    // Long enough for the workers to fall asleep.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    good &= chained_loops(pool, 20);
  }
  for (int i = 0; i < 200; ++i) {
    aperto::ThreadPool pool(4);  // destroyed while its workers may still be starting
    if (i % 2 == 0) good &= throwing_loop(pool);
  }
  return good ? 0 : 1;
}
