#include "checkpoint/rank_texts.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace conclave {

std::vector<std::string> gather_texts(Communicator& ranks, const std::string& own) {
  const at::Tensor lengths = at::zeros({ranks.size()}, at::kLong);
  ranks.all_gather(lengths, at::full({1}, static_cast<int64_t>(own.size()), at::kLong)).wait();
  const auto longest = lengths.max().item<int64_t>();
  if (longest == 0) return std::vector<std::string>(static_cast<size_t>(ranks.size()));
  at::Tensor padded = at::zeros({longest}, at::kByte);
  std::copy(own.begin(), own.end(), static_cast<char*>(padded.data_ptr()));
  const at::Tensor all = at::zeros({ranks.size() * longest}, at::kByte);
  ranks.all_gather(all, padded).wait();
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    const char* begin = static_cast<const char*>(all.data_ptr()) + rank * longest;
    texts.emplace_back(begin, static_cast<size_t>(lengths[rank].item<int64_t>()));
  }
  return texts;
}

std::string broadcast_text(Communicator& ranks, int source, const std::string& own) {
  const at::Tensor length = at::full({1}, static_cast<int64_t>(own.size()), at::kLong);
  ranks.broadcast(length, source).wait();
  const at::Tensor text = at::zeros({length.item<int64_t>()}, at::kByte);
  if (ranks.rank() == source) std::copy(own.begin(), own.end(), static_cast<char*>(text.data_ptr()));
  if (text.numel() > 0) ranks.broadcast(text, source).wait();
  return {static_cast<const char*>(text.data_ptr()), static_cast<size_t>(text.numel())};
}

}  // namespace conclave
