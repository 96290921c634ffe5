#include "apps/torchrun_word.h"

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

namespace conclave {

void leave_word_for_torchrun(const std::string& text) {
  const char* file = std::getenv("TORCHELASTIC_ERROR_FILE");
  if (file == nullptr || *file == '\0') return;
  const auto now =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  // As torch.distributed.elastic.multiprocessing.errors writes and reads it. The file is this process's own.
  const nlohmann::json word = {
      {"message", {{"message", text}, {"extraInfo", {{"timestamp", std::to_string(now.count())}}}}}};
  std::ofstream(file) << word.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace conclave
