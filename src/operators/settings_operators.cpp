// torch.ops.conclave.read_settings, layout_degrees and initial_values: what a Python program shares with the engine so
// that neither says it twice: the keys of a job, the arithmetic of layouts, the initial value of a weight.
#include <torch/library.h>

#include "base/random.h"
#include "config/job_file.h"
#include "mesh/layout.h"

namespace conclave {
namespace {

// The resolved job, as YAML, of `section.key=value` texts; refuses as the program does, with a UserError.
std::string read_settings(const std::vector<std::string>& overrides) {
  return print_job(job_from_overrides(overrides));
}

// [replica, shard, expert_replica, expert_shard, expert] of a world; refuses degrees that do not divide it or the
// experts.
std::vector<int64_t> layout_degrees(int64_t world, int64_t expert_parallel_degree, int64_t hybrid_shard_degree,
                                    int64_t experts) {
  ParallelConfig parallel;
  parallel.expert_parallel_degree = expert_parallel_degree;
  parallel.hybrid_shard_degree = hybrid_shard_degree;
  const Layout layout(static_cast<int>(world), parallel, experts);
  std::vector<int64_t> degrees;
  for (Axis axis : {Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
    degrees.push_back(layout.degree(axis));
  return degrees;
}

// Elements begin .. begin + count of the initial values of the parameter `name`, as `conclave train` draws them: fp32,
// normal with mean 0.
// NOLINTNEXTLINE(performance-unnecessary-value-param): PyTorch hands strings by value
at::Tensor initial_values(std::string name, int64_t seed, int64_t begin, int64_t count, double std) {
  at::Tensor values = at::empty({count}, at::kFloat);
  fill_normal({values.data_ptr<float>(), static_cast<size_t>(count)}, static_cast<uint64_t>(seed), random_stream(name),
              static_cast<uint64_t>(begin), 0.0F, static_cast<float>(std));
  return values;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("read_settings(str[] overrides) -> str");
  library.def("layout_degrees(int world, int expert_parallel_degree, int hybrid_shard_degree, int experts) -> int[]");
  library.def("initial_values(str name, int seed, int begin, int count, float std) -> Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("read_settings", read_settings);
  library.impl("layout_degrees", layout_degrees);
  library.impl("initial_values", initial_values);
}

}  // namespace conclave
