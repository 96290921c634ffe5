// One thread that does jobs in their order; started by the first job.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

namespace conclave {

class BackgroundThread {
 public:
  BackgroundThread() = default;
  ~BackgroundThread();  // finishes the jobs it has
  BackgroundThread(const BackgroundThread&) = delete;

  // The future carries the job's exception.
  std::future<void> run(std::function<void()> job);
  bool is_busy() const;

 private:
  void loop();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::packaged_task<void()>> jobs_;
  bool working_ = false;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace conclave
