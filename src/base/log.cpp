#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <fmt/core.h>

namespace conclave {

void set_up_logging(int rank, int world_size, LogRanks ranks) {
  auto logger = spdlog::stderr_color_mt("conclave");
  const std::string who = world_size > 1 ? fmt::format(" rank {}", rank) : "";
  logger->set_pattern("%H:%M:%S" + who + " %^%l%$: %v");
  if (rank != 0 && ranks == LogRanks::zero_only) logger->set_level(spdlog::level::warn);
  spdlog::set_default_logger(logger);
}

}  // namespace conclave
