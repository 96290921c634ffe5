#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <fmt/core.h>

#include <memory>

#include "base/printable.h"

namespace conclave {
namespace {

// %* in the pattern: the message, fit for a terminal whatever it quotes.
class PrintableMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm& /*time*/, spdlog::memory_buf_t& out) override {
    const std::string text = printable({message.payload.data(), message.payload.size()}, LineFeeds::kept);
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<PrintableMessage>(); }
};

}  // namespace

void set_up_logging(int rank, int world_size, LogRanks ranks) {
  auto logger = spdlog::stderr_color_mt("conclave");
  const std::string who = world_size > 1 ? fmt::format(" rank {}", rank) : "";
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<PrintableMessage>('*').set_pattern("%H:%M:%S" + who + " %^%l%$: %*");
  logger->set_formatter(std::move(formatter));
  if (rank != 0 && ranks == LogRanks::zero_only) logger->set_level(spdlog::level::warn);
  spdlog::set_default_logger(logger);
}

}  // namespace conclave
