// conclave ckpt list: what checkpoints a run has, and which one it would go on from.
#include <fmt/core.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/ckpt.h"
#include "checkpoint/checkpoint_folder.h"

namespace conclave {
namespace {

struct Listed {
  std::filesystem::path path;
  std::optional<std::string> damage;
  uint64_t bytes = 0;
  int64_t age_seconds = 0;

  std::string name() const { return path.filename().string(); }
};

Listed look_at(const std::filesystem::path& checkpoint) {
  Listed listed{checkpoint, damage_of(checkpoint), bytes_of_files(checkpoint)};
  const auto age = std::filesystem::file_time_type::clock::now() - std::filesystem::last_write_time(checkpoint);
  listed.age_seconds = std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::seconds>(age).count());
  return listed;
}

std::string age_text(int64_t seconds) {
  if (seconds < 120) return fmt::format("{} s", seconds);
  if (seconds < 7200) return fmt::format("{} min", seconds / 60);
  if (seconds < 2 * 86400) return fmt::format("{} h", seconds / 3600);
  return fmt::format("{} days", seconds / 86400);
}

void print(const std::vector<Listed>& all, const std::string& latest, const std::string& resume) {
  fmt::print("{:<16}{:>10}{:>10}  {}\n", "checkpoint", "size", "age", "state");
  for (const Listed& each : all) {
    std::string state = each.damage ? "damaged: " + *each.damage : "whole";
    if (each.name() == latest) state += "  (latest)";
    if (each.name() == resume) state += "  <- a resume takes this one";
    fmt::print("{:<16}{:>10}{:>10}  {}\n", each.name(), byte_count(each.bytes), age_text(each.age_seconds), state);
  }
  if (resume.empty()) fmt::print("A resume finds no checkpoint that is whole, and would begin anew.\n");
}

void print_json(const std::vector<Listed>& all, const std::string& latest, const std::string& resume) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Listed& each : all) {
    list.push_back({{"name", each.name()},
                    {"path", each.path.string()},
                    {"bytes", each.bytes},
                    {"age_seconds", each.age_seconds},
                    {"damage", each.damage ? nlohmann::ordered_json(*each.damage) : nlohmann::ordered_json()},
                    {"latest", each.name() == latest},
                    {"resume", each.name() == resume}});
  }
  fmt::print("{}\n", list.dump());
}

}  // namespace

void add_ckpt_list(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path folder;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand(
      "list", "the checkpoints of a run: size, age, whether they are whole, and which one a resume takes");
  command->add_option("folder", options->folder, "a run's folder, or its checkpoints folder")->required();
  command->add_flag("--json", options->json, "print a JSON array");
  command->footer(
      "Whole means that the manifest and the files' presence and lengths are right, which takes moments. `verify` "
      "reads everything.");
  command->callback([options] {
    const std::filesystem::path folder = checkpoints_folder_of(options->folder);
    std::vector<Listed> all;
    for (const std::filesystem::path& path : list_checkpoints(folder)) all.push_back(look_at(path));
    const auto newest = newest_checkpoint(folder);
    const std::string resume = newest ? newest->filename().string() : "";
    const std::string latest = named_by_latest(folder).value_or("").filename().string();
    (options->json ? print_json : print)(all, latest, resume);
    if (options->json) return;
    for (const std::filesystem::path& aside : list_abandoned(folder))
      fmt::print("{}: {} more, put aside when the run went back to an older one\n", aside.string(),
                 list_checkpoints(aside).size());
  });
}

}  // namespace conclave
