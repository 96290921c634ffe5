#include "comm/notice_board.h"

#include <fmt/ranges.h>

#include <iterator>
#include <sstream>

namespace conclave {
namespace {

std::string report_key(int rank) {
  return fmt::format("rank/{}", rank);
}
std::string ranks_key(const std::string& communicator) {
  return "ranks/" + communicator;
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
  std::istringstream in(store_->get_to_str(ranks_key(communicator)));
  return {std::istream_iterator<int>(in), {}};
}

std::optional<std::string> NoticeBoard::verdict() {
  if (!store_->check({"verdict"})) return {};
  return store_->get_to_str("verdict");
}

std::string NoticeBoard::write_verdict(const std::string& text) {
  return store_->compareSet("verdict", "", text);
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
