// conclave ckpt verify: is every byte of a checkpoint what was saved?
#include <fmt/core.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "apps/ckpt.h"
#include "base/error.h"
#include "checkpoint/checkpoint_verify.h"

namespace conclave {
namespace {

void print(const std::filesystem::path& checkpoint, const CheckpointVerdict& verdict, double seconds) {
  for (const CheckpointFlaw& flaw : verdict.flaws) {
    fmt::print("damaged: {}{}: {}\n", flaw.file, flaw.tensor.empty() ? "" : fmt::format(", tensor \"{}\"", flaw.tensor),
               flaw.reason);
  }
  fmt::print("{} is {}: {} tensors in {} files, {} hashed in {:.1f} s, {:.0f} MB/s\n", checkpoint.string(),
             verdict.flaws.empty() ? "intact" : "damaged", verdict.tensors, verdict.files, byte_count(verdict.bytes),
             seconds, static_cast<double>(verdict.bytes) / 1e6 / std::max(seconds, 1e-9));
}

void print_json(const std::filesystem::path& checkpoint, const CheckpointVerdict& verdict, double seconds) {
  nlohmann::ordered_json object = {
      {"path", checkpoint.string()}, {"intact", verdict.flaws.empty()}, {"flaws", nlohmann::ordered_json::array()},
      {"tensors", verdict.tensors},  {"files", verdict.files},          {"bytes", verdict.bytes},
      {"seconds", seconds}};
  for (const CheckpointFlaw& flaw : verdict.flaws)
    object["flaws"].push_back({{"file", flaw.file}, {"tensor", flaw.tensor}, {"reason", flaw.reason}});
  fmt::print("{}\n", object.dump());
}

}  // namespace

void add_ckpt_verify(CLI::App& ckpt, int& exit_code) {
  struct Options {
    std::filesystem::path checkpoint;
    bool json = false;
    bool quiet = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand(
      "verify", "read a whole checkpoint and hold every byte against its hash; exit code 1 when it is damaged");
  command->add_option("checkpoint", options->checkpoint, "a checkpoint's folder")->required();
  command->add_flag("--json", options->json, "print one JSON object");
  command->add_flag("--quiet", options->quiet, "print nothing: the exit code tells");
  command->callback([options, &exit_code] {
    // Not the newest one that is whole: a damaged checkpoint is just what is asked about.
    const std::filesystem::path& checkpoint = options->checkpoint;
    if (!std::filesystem::is_directory(checkpoint)) user_error("there is no checkpoint {}.", checkpoint.string());
    const bool plain = !options->json && !options->quiet;
    CheckpointVerdict verdict;
    double seconds = 0;
    {
      ByteProgress progress("verify", bytes_of_files(checkpoint),
                            plain ? ByteProgress::Show::on_terminal : ByteProgress::Show::never);
      verdict = verify_checkpoint(checkpoint, [&](uint64_t bytes) { progress.add(bytes); });
      seconds = progress.seconds();
    }
    if (!verdict.flaws.empty()) exit_code = exit_failure;
    if (options->quiet) return;
    (options->json ? print_json : print)(checkpoint, verdict, seconds);
  });
}

}  // namespace conclave
