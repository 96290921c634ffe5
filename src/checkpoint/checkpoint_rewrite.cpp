#include "checkpoint/checkpoint_rewrite.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <deque>
#include <string_view>

#include "base/error.h"
#include "checkpoint/checkpoint_stream.h"
#include "checkpoint/hugging_face_reader.h"
#include "comm/local_communicator.h"

namespace conclave {
namespace {

std::vector<SafetensorsHeader::Entry> entries_of(const Manifest& manifest) {
  std::vector<SafetensorsHeader::Entry> entries;
  for (const auto& [name, tensor] : manifest.tensors) entries.push_back({name, tensor.dtype, tensor.shape});
  return entries;
}

bool is_parameter(std::string_view tensor) {
  return tensor.starts_with(state_tensor_name(kind_parameter, ""));
}

void check_same_tensors(const CheckpointReader& a, const CheckpointReader& b) {
  const auto refuse = [&](const std::string& reason) {
    user_error("{} and {} cannot be averaged: {}.", a.path().string(), b.path().string(), reason);
  };
  for (const auto& [name, tensor] : a.manifest().tensors) {
    const auto other = b.manifest().tensors.find(name);
    if (other == b.manifest().tensors.end()) {
      refuse(fmt::format("only the first has tensor \"{}\"", name));
    } else if (other->second.shape != tensor.shape || other->second.dtype != tensor.dtype) {
      refuse(fmt::format("tensor \"{}\" is {} {} in the first and {} {} in the second", name, name_of(tensor.dtype),
                         text_of(tensor.shape), name_of(other->second.dtype), text_of(other->second.shape)));
    }
  }
  for (const auto& [name, tensor] : b.manifest().tensors) {
    if (!a.manifest().tensors.contains(name)) refuse(fmt::format("only the second has tensor \"{}\"", name));
  }
}

// Blocks of a tensor of `numel` fp32 elements: calls `fill` with each, then appends it.
void append_blocks(CheckpointStream& out, int64_t numel, const at::Tensor& memory, const UseBlock& fill,
                   const BytesDone& done) {
  for (int64_t begin = 0; begin < numel; begin += memory.numel()) {
    const at::Tensor block = memory.narrow(0, 0, std::min(memory.numel(), numel - begin));
    fill(begin, block);
    out.append(block);
    done(block.nbytes());
  }
}

}  // namespace

void reshard_checkpoint(CheckpointReader& from, const std::filesystem::path& to, int64_t files, Overwrite overwrite,
                        const BytesDone& done) {
  CheckpointStream out(to, from.state(), entries_of(from.manifest()), files, overwrite);
  for (const auto& [name, tensor] : from.manifest().tensors) {
    for_each_block(from, name, [&](int64_t, const at::Tensor& block) {
      out.append(block);
      done(block.nbytes());
    });
  }
  out.finish();
}

void average_checkpoints(std::span<const std::filesystem::path> from, const std::filesystem::path& to,
                         Overwrite overwrite, const BytesDone& done) {
  check_invariant(from.size() >= 2, "an average of {} checkpoints", from.size());
  std::deque<CheckpointReader> readers;
  for (const std::filesystem::path& path : from) {
    readers.emplace_back(path);
    check_same_tensors(readers.front(), readers.back());
  }
  CheckpointReader& last = readers.back();
  const Manifest& manifest = last.manifest();
  for (const auto& [name, tensor] : manifest.tensors) {
    if (is_parameter(name) && !converts_to_fp32(tensor.dtype))
      user_error("tensor \"{}\" is {}, which has no mean.", name, name_of(tensor.dtype));
  }

  const at::NoGradGuard no_grad;
  CheckpointStream out(to, last.state(), entries_of(manifest), static_cast<int64_t>(manifest.files.size()), overwrite);
  for (const auto& entry : manifest.tensors) {
    const std::string& name = entry.first;
    const ManifestTensor& tensor = entry.second;
    for_each_block(readers.front(), name, [&](int64_t begin, const at::Tensor& block) {
      TensorSlice other{name, tensor.shape, begin, block};
      if (!is_parameter(name)) {
        last.load({&other, 1});
      } else {
        const at::Tensor sum = block.to(at::kFloat, false, /*copy=*/true);
        other.data = at::empty_like(block);
        for (size_t i = 1; i < readers.size(); ++i) {
          readers[i].load({&other, 1});
          sum.add_(other.data);
        }
        block.copy_(sum.div_(static_cast<double>(readers.size())));
      }
      out.append(block);
      done(block.nbytes());
    });
  }
  out.finish();
}

void export_checkpoint(CheckpointReader& from, std::span<const DiskNames> names, const std::filesystem::path& to,
                       const HuggingFaceExportOptions& options, const BytesDone& done) {
  for (const DiskNames& parameter : names) {
    const std::string name = state_tensor_name(kind_parameter, parameter.parameter);
    const auto found = from.manifest().tensors.find(name);
    if (found == from.manifest().tensors.end())
      user_error("checkpoint {} has no tensor \"{}\".", from.path().string(), name);
    if (found->second.shape != parameter.shape)
      user_error("tensor \"{}\" has shape {} in checkpoint {}, but its model makes it {}.", name,
                 text_of(found->second.shape), from.path().string(), text_of(parameter.shape));
  }
  LocalCommunicator alone("world");
  HuggingFaceExport out(to, names, options, alone);
  for (const DiskNames& parameter : names) {
    for_each_block(from, state_tensor_name(kind_parameter, parameter.parameter),
                   [&](int64_t begin, const at::Tensor& block) {
                     out.write({parameter.parameter, parameter.shape, begin, block});
                     done(static_cast<uint64_t>(block.numel()) * c10::elementSize(options.dtype));
                   });
  }
  out.finish();
}

uint64_t bytes_of_export(std::span<const DiskNames> names, at::ScalarType dtype) {
  uint64_t elements = 0;
  for (const DiskNames& parameter : names) elements += static_cast<uint64_t>(checked_numel(parameter.shape).value());
  return elements * c10::elementSize(dtype);
}

uint64_t bytes_of_import(std::span<const DiskNames> names, std::span<const std::string> zeros) {
  return bytes_of_export(names, at::kFloat) * (1 + zeros.size());
}

void import_hugging_face(const std::filesystem::path& from, std::span<const DiskNames> names,
                         std::span<const std::string> zeros, const CheckpointState& state,
                         const std::filesystem::path& to, Overwrite overwrite, const BytesDone& done) {
  const HuggingFaceReader reader(from, names);
  std::vector<SafetensorsHeader::Entry> entries;
  const auto add_all = [&](std::string_view kind) {
    for (const DiskNames& parameter : names)
      entries.push_back({state_tensor_name(kind, parameter.parameter), StoredDtype::F32, parameter.shape});
  };
  add_all(kind_parameter);
  for (const std::string& kind : zeros) add_all(kind);
  CheckpointStream out(to, state, entries, 1, overwrite);

  const at::Tensor memory = at::empty({static_cast<int64_t>(default_hash_block_bytes / sizeof(float))});
  for (const DiskNames& parameter : names) {
    const auto fill = [&](int64_t begin, const at::Tensor& block) {
      reader.load({parameter.parameter, parameter.shape, begin, block});
    };
    append_blocks(out, checked_numel(parameter.shape).value(), memory, fill, done);
  }
  memory.zero_();
  for (size_t i = 0; i < zeros.size(); ++i) {
    for (const DiskNames& parameter : names)
      append_blocks(
          out, checked_numel(parameter.shape).value(), memory, [](int64_t, const at::Tensor&) {}, done);
  }
  out.finish();
}

}  // namespace conclave
