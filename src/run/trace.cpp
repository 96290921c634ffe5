#include "run/trace.h"

#include <set>

#include "base/error.h"
#include "checkpoint/disk_parts.h"
#include "checkpoint/safetensors_reader.h"
#include "checkpoint/safetensors_writer.h"
#include "families/adapter_names.h"
#include "families/family.h"
#include "run/model_source.h"
#include "run/whole_parameter.h"
#include "step/forward_backward.h"

namespace conclave {
namespace {

struct TracedBatch {
  MicroBatch of_rank;
  int64_t batch = 0;  // of all ranks
  int64_t sequence = 0;
  int64_t targets = 0;
};

at::Tensor read_tokens(const SafetensorsReader& file, const char* name) {
  at::Tensor tensor = file.read_whole(name);
  if (tensor.scalar_type() != at::kLong || tensor.dim() != 2)
    user_error("{}: {} must be int64 [B,S], but is {} with {} dims", file.file().path().string(), name,
               c10::toString(tensor.scalar_type()), tensor.dim());
  return tensor;
}

// Of sequences [begin, end); null: the file says of no token which document it is of.
std::shared_ptr<const Documents> read_documents(const SafetensorsReader& file, at::IntArrayRef shape, int64_t begin,
                                                int64_t end, at::Device device) {
  constexpr auto name = "segment_ids";
  const auto path = file.file().path().string();
  if (!file.find(name)) return nullptr;
  const at::Tensor segment_BS = read_tokens(file, name).contiguous();
  if (segment_BS.sizes() != shape) user_error("{}: input_ids and segment_ids must have one shape", path);
  const int64_t sequence = shape[1];
  std::vector<int64_t> ends;
  for (int64_t b = 0; b < shape[0]; ++b) {
    const int64_t* segment = segment_BS.const_data_ptr<int64_t>() + b * sequence;
    std::set<int64_t> before;
    for (int64_t s = 0; s < sequence; ++s) {
      if (s + 1 < sequence && segment[s + 1] == segment[s]) continue;
      if (!before.insert(segment[s]).second)
        user_error(
            "{}: segment_ids has the number {} in two places of sequence {}; a document's tokens lie side by side.\n   "
            " "
            "   Give each document of a sequence a number of its own.",
            path, segment[s], b);
      if (b >= begin && b < end) ends.push_back((b - begin) * sequence + s + 1);
    }
  }
  return std::make_shared<const Documents>(documents_of(std::move(ends), sequence, device));
}

TracedBatch read_batch(const ParallelJob& job, const std::filesystem::path& path, int world) {
  const SafetensorsReader file(path);
  const at::Tensor input_BS = read_tokens(file, "input_ids");
  const at::Tensor label_BS = read_tokens(file, "labels");
  if (input_BS.sizes() != label_BS.sizes()) user_error("{}: input_ids and labels must have one shape", path.string());
  if (input_BS.numel() == 0) user_error("{}: input_ids is empty", path.string());
  const int64_t vocabulary = job.model_config().vocab_size;
  if (input_BS.min().item<int64_t>() < 0 || input_BS.max().item<int64_t>() >= vocabulary)
    user_error("{}: input_ids has a token outside 0..{}", path.string(), vocabulary - 1);
  const at::Tensor counted = label_BS.ne(-100);
  if (label_BS.max().item<int64_t>() >= vocabulary || (counted & label_BS.lt(0)).any().item<bool>())
    user_error("{}: labels has a token outside 0..{} that is not -100", path.string(), vocabulary - 1);

  TracedBatch traced;
  traced.batch = input_BS.size(0);
  traced.sequence = input_BS.size(1);
  traced.targets = counted.sum().item<int64_t>();
  if (traced.targets == 0) user_error("{}: every label is -100", path.string());
  const int64_t begin = traced.batch * job.rank() / world;
  const int64_t end = traced.batch * (job.rank() + 1) / world;
  const auto part = [&](const at::Tensor& tensor) {
    return tensor.narrow(0, begin, end - begin).flatten().to(job.device());
  };
  traced.of_rank = {part(input_BS), part(label_BS), end - begin, traced.sequence, {}, {}};
  traced.of_rank.documents = read_documents(file, input_BS.sizes(), begin, end, job.device());
  for (int64_t sample = begin; sample < end; ++sample) traced.of_rank.sample_of_B.push_back(sample);
  return traced;
}

bool is_trained(const ParallelModel& model, const std::string& parameter) {
  for (const UnitDeclaration& unit : model.declarations())
    for (const ParameterDeclaration& declared : unit.parameters)
      if (declared.name == parameter) return declared.trained && !declared.frozen;
  return false;
}

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Under the names on disk.
NamedTensors model_gradients(ParallelJob& job) {
  const std::vector<TensorSlice> slices = job.model().slices(ParallelModel::gradient, ParallelModel::Replicas::once);
  NamedTensors gradients;
  for (const DiskNames& names : disk_names(job.model_config())) {
    if (!is_trained(job.model(), names.parameter)) continue;
    const at::Tensor whole = whole_parameter(job, slices, names.parameter, names.shape);
    int64_t begin = 0;
    for (const DiskTensor& part : names.parts) {
      const at::Tensor view = whole.flatten().narrow(0, begin, c10::multiply_integers(part.shape)).view(part.shape);
      gradients.emplace_back("grad." + part.name, view);
      begin += view.numel();
    }
  }
  return gradients;
}

// Under PEFT's names.
NamedTensors adapter_gradients(ParallelJob& job) {
  const std::vector<TensorSlice> slices = job.model().slices(ParallelModel::gradient, ParallelModel::Replicas::once);
  NamedTensors gradients;
  for (const AdapterTensor& tensor : adapter_tensors(job.model_config()))
    gradients.emplace_back("grad." + tensor.on_disk,
                           tensor.to_disk(whole_parameter(job, slices, tensor.parameter, tensor.shape)));
  return gradients;
}

}  // namespace

void trace(ParallelJob& job, const TraceRequest& request) {
  Communicator& world = job.axes().world();
  const TracedBatch batch = read_batch(job, request.tokens, world.size());
  ParallelModel& model = job.model();
  model.allocate_parameters();
  load_hugging_face(job, request.model);
  start_adapter(job);
  ForwardBackward forward_backward(model, job.settings());

  forward_backward.take_parameters();
  const ForwardBackward::Traced traced = forward_backward.trace(batch.of_rank);
  const int64_t vocabulary = job.model_config().vocab_size;
  at::Tensor logits = whole_of_parts(job, batch.batch * batch.sequence * vocabulary, [&](at::Tensor& whole) {
    const int64_t begin = batch.batch * job.rank() / world.size() * batch.sequence * vocabulary;
    whole.narrow(0, begin, traced.logits_TV.numel()).copy_(traced.logits_TV.flatten());
  });
  const double lm_loss = job.sum_over_world({traced.result.loss_sum})[0] / static_cast<double>(batch.targets);
  NamedTensors tensors = {{"logits", logits.view({batch.batch, batch.sequence, vocabulary})},
                          {"lm_loss", at::scalar_tensor(lm_loss, at::kFloat)},
                          {"rotary_cos", traced.rotary.cos_SD.to(at::kCPU)},
                          {"rotary_sin", traced.rotary.sin_SD.to(at::kCPU)},
                          {"aux_loss", at::scalar_tensor(traced.result.balance.aux_loss, at::kFloat)},
                          {"z_loss", at::scalar_tensor(traced.result.balance.z_loss, at::kFloat)}};

  if (request.gradients) {
    model.allocate_training_state();
    forward_backward.train(batch.of_rank, {true, true, 1.0 / static_cast<double>(batch.targets), 1.0});
    for (auto& gradient : job.model_config().adapter ? adapter_gradients(job) : model_gradients(job))
      tensors.push_back(std::move(gradient));
  }
  if (job.is_first()) write_safetensors(request.out, tensors);
  world.barrier();
}

}  // namespace conclave
