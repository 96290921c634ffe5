#include "comm/notice_board.h"

#include <fmt/ranges.h>

#include <iterator>
#include <sstream>

#include "base/error.h"

namespace conclave {
namespace {

std::string report_key(int rank) {
  return fmt::format("rank/{}", rank);
}
std::string ranks_key(const std::string& communicator) {
  return "ranks/" + communicator;
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
  check_invariant(end != std::string::npos, "the verdict in the store is \"{}\"", text);
  return {text.substr(end + 1), decode_ranks(text.substr(0, end))};
}

}  // namespace

void NoticeBoard::write_report(int rank, const RankReport& report) {
  store_->set(report_key(rank), report.encode());
}

RankReport NoticeBoard::report_of(int rank) {
  return RankReport::decode(store_->get_to_str(report_key(rank)));
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

int64_t NoticeBoard::count_started(int more) {
  return store_->add("started", more);
}
int64_t NoticeBoard::count_finished(int more) {
  return store_->add("finished", more);
}
int64_t NoticeBoard::count_gone(int more) {
  return store_->add("gone", more);
}

}  // namespace conclave
