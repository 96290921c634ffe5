// What PyTorch's distributed checkpoints (DCP) call the tensors of a model and of its AdamW.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_slice.h"

namespace conclave {

// A tensor of a DCP folder, which is a range of a checkpoint's tensor.
struct DcpTensor {
  std::vector<std::string> path;  // in the nested state that torch.distributed.checkpoint.save was given
  std::vector<int64_t> shape;
  std::string source;  // the checkpoint's tensor

  std::string name() const;  // in the folder: the path with points between
};

// Of {"model": model.state_dict(), "optimizer": {"state": {parameter: {"exp_avg": ...}}}} of a Transformers 5 model
// (experts fused; query, key and value apart), in the order in which they pass through the pipe: tensors of one source
// follow each other. A tied model has its one table under both names, as its state_dict() does.
std::vector<DcpTensor> dcp_tensors(const std::vector<DiskNames>& names, bool tied);

// The names of a parameter, of which AdamW has a state each.
std::vector<std::string> dcp_parameters(const DiskNames& names);

// Where a folder that somebody saved has a model and its optimizer: what stands before the parameters' names, such as
// "model." and "optimizer.state.", or "app.model." and "app.optim.state.", or nothing.
struct DcpPlaces {
  std::string model;
  std::optional<std::string> optimizer;  // none: the folder has no moments
};
// `offered`: the folder's tensors, by name. UserError when there is no such model or more than one.
DcpPlaces find_places(const nlohmann::json& offered, const std::string& folder);

// All that a checkpoint needs of what such a folder offers, by the names of Transformers 5 or 4.
std::vector<DcpTensor> dcp_tensors_at(const DcpPlaces& places, const std::vector<DiskNames>& names,
                                      const nlohmann::json& offered);

}  // namespace conclave
