#include "base/thread_pool.h"

#include <utility>

#include "base/check.h"
#include "base/float_environment.h"

namespace aperto {
namespace {

// A loop follows the last one within microseconds during a forward pass: spin about that long
// before sleeping, so that an idle pool costs no CPU.
constexpr int kSpins = 4000;

inline void pause() {
#ifdef APERTO_X86
  _mm_pause();
#endif
}

// Returns once `value` no longer equals `old`.
void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  check(num_threads >= 1 && num_threads <= 1024, "num_threads is ", num_threads,
        "; expected 1..1024");
  workers_.reserve(num_threads - 1);
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(size_t count, const Body& body) {
  if (count == 0) return;
  if (count == 1 || workers_.empty()) {
    for (size_t item = 0; item < count; ++item) body(item, 0);
    return;
  }
  body_ = &body;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  take_items(0);
  for (uint32_t left = running_.load(std::memory_order_acquire); left != 0;
       left = running_.load(std::memory_order_acquire)) {
    wait_for_change(running_, left);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::take_items(int thread) {
  try {
    for (size_t item = next_.fetch_add(1, std::memory_order_relaxed); item < count_;
         item = next_.fetch_add(1, std::memory_order_relaxed)) {
      (*body_)(item, thread);
    }
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
    next_.store(count_, std::memory_order_relaxed);
  }
}

void ThreadPool::work(int thread) {
  const FloatEnvironment environment;
  uint32_t seen = 0;
  for (;;) {
    wait_for_change(epoch_, seen);
    ++seen;
    if (stop_.load()) return;
    take_items(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace aperto
