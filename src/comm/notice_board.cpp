#include "comm/notice_board.h"

#include <fmt/ranges.h>

#include <iterator>
#include <sstream>

#include "base/printable.h"
#include "comm/foreign_text.h"

namespace conclave {
namespace {

std::string report_key(int rank) {
  return fmt::format("rank/{}", rank);
}
std::string ranks_key(const std::string& communicator) {
  return "ranks/" + communicator;
}

const char* name_of(NoticeBoard::Milestone milestone) {
  switch (milestone) {
    case NoticeBoard::Milestone::started:
      return "started";
    case NoticeBoard::Milestone::finished:
      return "finished";
    default:
      return "gone";
  }
}
std::string milestone_key(NoticeBoard::Milestone milestone, int rank) {
  return fmt::format("{}/{}", name_of(milestone), rank);
}

// A line with the lost ranks, then the text.
std::string encode(const Diagnosis& verdict) {
  return fmt::format("{}\n{}", fmt::join(verdict.lost, " "), verdict.text);
}

std::vector<int> decode_ranks(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<int>(in), {}};
}

Diagnosis decode_verdict(const std::string& text) {
  const size_t end = text.find('\n');
  if (end == std::string::npos) throw ForeignTextError("the verdict", text);
  return {printable(text.substr(end + 1)), decode_ranks(text.substr(0, end))};
}

}  // namespace

bool NoticeBoard::take_place(int rank, const std::string& process) {
  return store_->compareSet(fmt::format("place/{}", rank), "", process) == process;
}

void NoticeBoard::write_report(int rank, const RankReport& report) {
  store_->set(report_key(rank), report.encode());
}

RankReport NoticeBoard::report_of(int rank) {
  const std::string text = store_->get_to_str(report_key(rank));
  if (auto report = RankReport::decode(text)) return *report;
  throw ForeignTextError(fmt::format("the report of rank {}", rank), text);
}

std::vector<int> NoticeBoard::ranks_without_report(int world_size) {
  std::vector<int> missing;
  for (int rank = 0; rank < world_size; ++rank)
    if (!store_->check({report_key(rank)})) missing.push_back(rank);
  return missing;
}

void NoticeBoard::write_ranks(const std::string& communicator, const std::vector<int>& ranks) {
  store_->set(ranks_key(communicator), fmt::format("{}", fmt::join(ranks, " ")));
}

std::vector<int> NoticeBoard::ranks_of(const std::string& communicator) {
  if (!store_->check({ranks_key(communicator)})) return {};
  return decode_ranks(store_->get_to_str(ranks_key(communicator)));
}

std::optional<Diagnosis> NoticeBoard::verdict() {
  if (!store_->check({"verdict"})) return {};
  return decode_verdict(store_->get_to_str("verdict"));
}

Diagnosis NoticeBoard::write_verdict(const Diagnosis& verdict) {
  return decode_verdict(store_->compareSet("verdict", "", encode(verdict)));
}

void NoticeBoard::reach(Milestone milestone, int rank) {
  store_->set(milestone_key(milestone, rank), "reached");
}

bool NoticeBoard::all_reached(Milestone milestone, int rank, int world_size) {
  const std::string key = fmt::format("{}/all", name_of(milestone));
  if (rank != 0) return store_->check({key}) && store_->get_to_str(key) == "reached";
  if (!has_seen_all(milestone, world_size)) return false;
  store_->set(key, "reached");
  return true;
}

bool NoticeBoard::has_seen_all(Milestone milestone, int world_size) {
  std::vector<std::string> keys;
  for (int rank = 0; rank < world_size; ++rank) keys.push_back(milestone_key(milestone, rank));
  if (!store_->check(keys)) return false;
  for (const std::string& key : keys)  // a signature is seen to where a value is read
    if (const std::string text = store_->get_to_str(key); text != "reached") throw ForeignTextError(key, text);
  return true;
}

}  // namespace conclave
