#include "cuda/synchronization_count.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>

#include <string>

namespace conclave {

namespace {

class CountingHandler final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    if (warning.msg().find("synchronizing CUDA operation") != std::string::npos) {
      ++count;
    } else {
      c10::WarningHandler::process(warning);
    }
  }
  int64_t count = 0;
};

CountingHandler& handler() {
  thread_local CountingHandler of_thread;
  return of_thread;
}

}  // namespace

void count_synchronizations(bool on) {
  handler().count = 0;
  c10::WarningUtils::set_warning_handler(on ? &handler() : nullptr);
  c10::cuda::warning_state().set_sync_debug_mode(on ? c10::cuda::SyncDebugMode::L_WARN
                                                    : c10::cuda::SyncDebugMode::L_DISABLED);
}

int64_t synchronizations() {
  return handler().count;
}

}  // namespace conclave
