// conclave bench products: a step's matrix products alone, the floor under its time.
#include <fmt/core.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/bench.h"
#include "benchmarks/product_benchmark.h"

namespace conclave {
namespace {

void print_table(const ProductTimes& times) {
  fmt::print("{:<24}{:>24}{:>7}{:>11}{:>11}{:>11}{:>11}{:>10}\n", "product", "rows x inner -> columns", "times",
             "forward s", "d input s", "d weight s", "sum s", "GFLOP/s");
  for (const TimedProduct& product : times.products) {
    fmt::print("{:<24}{:>24}{:>7}{:>11.4f}{:>11.4f}{:>11.4f}{:>11.4f}{:>10.1f}\n", product.name,
               fmt::format("{} x {} -> {}", product.rows, product.inner, product.columns), product.times,
               product.forward, product.input_gradient, product.weight_gradient, product.seconds(),
               product.operations() / product.seconds() / 1e9);
  }
  fmt::print(
      "\nproducts of a step:                {:.4f} s\n"
      "one pass of AdamW over its memory: {:.4f} s ({:.2f} GB at {:.1f} GB/s, the rate of a copy)\n"
      "together:                          {:.4f} s\n",
      times.seconds(), times.optimizer_seconds(), times.optimizer_bytes / 1e9, times.copy_rate / 1e9,
      times.seconds() + times.optimizer_seconds());
}

void print_json(const ProductTimes& times) {
  nlohmann::ordered_json products;
  for (const TimedProduct& product : times.products)
    products.push_back({{"name", product.name},
                        {"rows", product.rows},
                        {"inner", product.inner},
                        {"columns", product.columns},
                        {"times", product.times},
                        {"forward", product.forward},
                        {"input_gradient", product.input_gradient},
                        {"weight_gradient", product.weight_gradient},
                        {"flops_per_second", product.operations() / product.seconds()}});
  const nlohmann::ordered_json object = {{"products", products},
                                         {"products_seconds", times.seconds()},
                                         {"optimizer_seconds", times.optimizer_seconds()},
                                         {"optimizer_bytes", times.optimizer_bytes},
                                         {"copy_bytes_per_second", times.copy_rate}};
  std::cout << object.dump() << std::endl;
}

}  // namespace

void add_bench_products(CLI::App& bench, int& exit_code) {
  add_bench_of_parts(
      bench, exit_code, "products",
      "the matrix products of a job's step alone, on all ranks at once: the floor under a step's time",
      "PyTorch's own products of the shapes of one rank's step, forward and backward, recomputed ones not counted; "
      "experts get equal shares of the rows, queries the same number of keys. Compare with `conclave bench step` of "
      "the same job: what a step takes longer is everything else, and the uneven shares of real routing.",
      [](ParallelJob& job, int64_t repeats, bool json) {
        const ProductTimes times = time_products(job, repeats);
        if (job.is_first()) (json ? print_json : print_table)(times);
      });
}

}  // namespace conclave
