// A persistent pool: one parallel loop at a time, items handed out dynamically.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace aperto {

class ThreadPool {
 public:
  // num_threads counts the caller, which works too: 1 starts no thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(item, thread) for every item in [0, count), thread in [0, num_threads), and returns
  // when all are done. Which thread takes which item is not fixed: bodies must not care.
  // The first exception thrown by a body is rethrown here. Not re-entrant.
  using Body = std::function<void(size_t item, int thread)>;
  void parallel_for(size_t count, const Body& body);

 private:
  void work(int thread);
  void take_items(int thread);

  std::vector<std::thread> workers_;
  const Body* body_ = nullptr;
  size_t count_ = 0;
  std::atomic<size_t> next_{0};
  std::atomic<uint32_t> epoch_{0};    // raised once a loop; workers wait for it to change
  std::atomic<uint32_t> running_{0};  // workers still inside the current loop
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace aperto
