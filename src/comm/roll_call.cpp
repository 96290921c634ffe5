#include "comm/roll_call.h"

#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <map>

#include "comm/foreign_text.h"
#include "comm/process_state.h"

namespace conclave {
namespace {

std::string encode(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += fmt::format("{}:{}", text.size(), text);
  return all;
}

std::vector<std::string> decode(const std::string& all, int world_size) {
  std::vector<std::string> texts;
  for (size_t at = 0; at < all.size();) {
    const size_t colon = all.find(':', at);
    const std::string length = colon == std::string::npos ? "" : all.substr(at, colon - at);
    if (length.empty() || length.size() > 9 || length.find_first_not_of("0123456789") != std::string::npos ||
        all.size() - colon - 1 < std::stoul(length))
      throw ForeignTextError("the roll call", all);
    texts.push_back(all.substr(colon + 1, std::stoul(length)));
    at = colon + 1 + texts.back().size();
  }
  if (texts.size() != static_cast<size_t>(world_size)) throw ForeignTextError("the roll call", all);
  return texts;
}

std::string name_in_network() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

}  // namespace

// Rank 0 hands out what it has gathered, so that the store's work grows with the ranks and not with their square.
std::vector<std::string> call_roll(c10d::Store& store, int rank, int world_size, const std::string& name,
                                   const std::string& text) {
  const auto key_of = [&](int of_rank) { return fmt::format("roll/{}/{}", name, of_rank); };
  const std::string key_of_all = fmt::format("roll/{}/all", name);
  if (rank != 0) {
    store.set(key_of(rank), text);
    return decode(store.get_to_str(key_of_all), world_size);
  }
  std::vector<std::string> texts{text};
  for (int other = 1; other < world_size; ++other) texts.push_back(store.get_to_str(key_of(other)));
  store.set(key_of_all, encode(texts));
  return texts;
}

RankPlace RankPlace::of_this_process() {
  const std::string host = name_of_host();
  return {host.empty() ? name_in_network() : host, Cores::of_this_process()};
}

std::string RankPlace::text() const {
  return host + "\n" + cores.text();
}

RankPlace RankPlace::parse(const std::string& text) {
  const size_t end = text.find('\n');
  if (end == std::string::npos) throw ForeignTextError("a rank's place", text);
  return {text.substr(0, end), Cores::parse(text.substr(end + 1))};
}

std::vector<int> number_hosts(const std::vector<RankPlace>& places) {
  std::map<std::string, int> numbers;
  std::vector<int> host_of_rank;
  for (const RankPlace& place : places)
    host_of_rank.push_back(numbers.emplace(place.host, static_cast<int>(numbers.size())).first->second);
  return host_of_rank;
}

}  // namespace conclave
