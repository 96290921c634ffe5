// By cuBLASLt itself: of ATen's calls _scaled_mm_v2 takes block scales for two e4m3 matrices only (torch 2.11), none
// adds an fp8 product to what is there, nor a product of bf16 to a matrix in fp32 in place. Layouts, types and scaling
// modes are those of cuBLAS's manual, for fp8 "128-element 1D and 128x128 2D Block Scaling For FP8 Data Types". Its
// symbols come with libtorch_cuda.
#include "cuda/library_products.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <stdexcept>
#include <vector>

#include "base/error.h"
#include "cuda/launches.h"

namespace conclave {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(fmt::format("{} of cuBLASLt failed: {}", call, cublasLtGetStatusString(status)));
}

struct Destroyer {
  void operator()(cublasLtMatmulDesc_t it) const { cublasLtMatmulDescDestroy(it); }
  void operator()(cublasLtMatrixLayout_t it) const { cublasLtMatrixLayoutDestroy(it); }
  void operator()(cublasLtMatmulPreference_t it) const { cublasLtMatmulPreferenceDestroy(it); }
};
using Operation = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroyer>;
using MatrixLayout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroyer>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroyer>;

cudaDataType_t type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat8_e4m3fn:
      return CUDA_R_8F_E4M3;
    case at::kFloat8_e5m2:
      return CUDA_R_8F_E5M2;
    case at::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// Of a matrix [rows, columns] with contiguous rows, which lie `stride` apart: to cuBLAS, whose first dim is the
// contiguous one, its transpose.
MatrixLayout make_layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows),
                                   std::max(columns, stride)),
        "cublasLtMatrixLayoutCreate");
  return MatrixLayout(layout);
}

MatrixLayout layout_of(const at::Tensor& matrix) {
  return make_layout(type_of(matrix), matrix.size(0), matrix.size(1), matrix.stride(0));
}

template <class T>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}

template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
        "cublasLtMatmulPreferenceSetAttribute");
}

int32_t scale_mode(const Fp8Matrix& matrix) {
  return matrix.blocks == Fp8Blocks::rows ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
                                          : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
}

Operation make_operation(cublasOperation_t of_a, cublasOperation_t of_b) {
  cublasLtMatmulDesc_t created = nullptr;
  check(cublasLtMatmulDescCreate(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Operation operation(created);
  set<int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSA, of_a);
  set<int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSB, of_b);
  return operation;
}

// out^T = b a^T: cuBLAS's A is b, its B is a.
Operation make_fp8_operation(const Fp8Matrix& a, const Fp8Matrix& b) {
  Operation operation = make_operation(CUBLAS_OP_T, CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, scale_mode(b));
  set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, scale_mode(a));
  set<const void*>(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, b.scale.data_ptr());
  set<const void*>(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, a.scale.data_ptr());
  return operation;
}

uint32_t alignment_of(const at::Tensor& tensor) {
  uint32_t alignment = 256;  // cuBLAS asks for no more
  while (reinterpret_cast<uintptr_t>(tensor.data_ptr()) % alignment != 0) alignment /= 2;
  return alignment;
}

// ATen's for cuBLAS on this stream: what it has for cuBLASLt is 1 MiB, too little for some of Hopper's products.
struct Workspace {
  Workspace() : bytes(at::cuda::getChosenWorkspaceSize()) {
    void* const handle = at::cuda::getCurrentCUDABlasHandle();  // which makes the workspace if there is none
    auto& workspaces = at::cuda::cublas_handle_stream_to_workspace();
    const std::shared_lock lock(workspaces.mutex);
    address = workspaces.map.at({handle, cuda::current_stream()}).get();
  }
  void* address;
  size_t bytes;
};

// A product as far as its algorithm depends on it. The number of rows differs from call to call, and to ask cuBLAS for
// an algorithm takes the host tens of microseconds: numbers in between share that of the next larger one with three
// bits behind the first.
struct Product {
  const Operation& operation;
  std::array<int64_t, 2> kind;  // what the operation is
  const at::Tensor &out, &a, &b;
  int64_t rows;  // a size of two of the three
  bool accumulate;

  int64_t rounded(int64_t size) const {
    if (size != rows) return size;
    const auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size)) >> 3);
    return step > 1 ? (size + step - 1) / step * step : size;
  }
  MatrixLayout rounded_layout_of(const at::Tensor& matrix) const {
    const int64_t columns = rounded(matrix.size(1));
    return make_layout(type_of(matrix), rounded(matrix.size(0)), columns,
                       matrix.is_contiguous() ? columns : matrix.stride(0));
  }
  // Of the product with rounded sizes, or as it is.
  std::vector<int64_t> key(bool is_rounded) const {
    std::vector<int64_t> key(kind.begin(), kind.end());
    const auto size = [&](int64_t exact) { return is_rounded ? rounded(exact) : exact; };
    for (const at::Tensor& matrix : {out, a, b})
      for (const int64_t number :
           {static_cast<int64_t>(type_of(matrix)), size(matrix.size(0)), size(matrix.size(1)),
            matrix.is_contiguous() ? 0 : matrix.stride(0), static_cast<int64_t>(alignment_of(matrix))})
        key.push_back(number);
    for (const int64_t number : {int64_t{accumulate}, int64_t{is_rounded}, int64_t{at::cuda::current_device()}})
      key.push_back(number);
    return key;
  }
};

// What cuBLAS thinks best for matrices of these layouts and the alignments of the product's own; nothing: it has none.
std::optional<cublasLtMatmulAlgo_t> ask_for_algorithm(const Product& product, const MatrixLayout& out,
                                                      const MatrixLayout& a, const MatrixLayout& b) {
  cublasLtMatmulPreference_t created = nullptr;
  check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
  const Preference preference(created);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, at::cuda::getChosenWorkspaceSize());
  // Parts of a sum are added in fp32, in a fixed order.
  set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(product.a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(product.b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(product.out));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(product.out));
  cublasLtMatmulHeuristicResult_t chosen{};
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(at::cuda::getCurrentCUDABlasLtHandle(), product.operation.get(), a.get(), b.get(),
                                     out.get(), out.get(), preference.get(), 1, &chosen, &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  if (found == 0) return {};
  return chosen.algo;
}

bool fits(const cublasLtMatmulAlgo_t& algorithm, const Product& product, const MatrixLayout& out, const MatrixLayout& a,
          const MatrixLayout& b) {
  cublasLtMatmulHeuristicResult_t here{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(at::cuda::getCurrentCUDABlasLtHandle(), product.operation.get(),
                                                        a.get(), b.get(), out.get(), out.get(), &algorithm, &here);
  return status == CUBLAS_STATUS_SUCCESS && here.workspaceSize <= at::cuda::getChosenWorkspaceSize();
}

// Follows from the product alone, not from those before it: the same job, resumed too, gives the same bits.
cublasLtMatmulAlgo_t algorithm_of(const Product& product, const MatrixLayout& out, const MatrixLayout& a,
                                  const MatrixLayout& b) {
  thread_local std::map<std::vector<int64_t>, std::optional<cublasLtMatmulAlgo_t>> known;
  const auto [rounded, is_new] = known.try_emplace(product.key(/*is_rounded=*/true));
  if (is_new)
    rounded->second = ask_for_algorithm(product, product.rounded_layout_of(product.out),
                                        product.rounded_layout_of(product.a), product.rounded_layout_of(product.b));
  if (rounded->second && fits(*rounded->second, product, out, a, b)) return *rounded->second;
  const auto [exact, is_first] = known.try_emplace(product.key(/*is_rounded=*/false));
  if (is_first) exact->second = ask_for_algorithm(product, out, a, b);
  if (exact->second) return *exact->second;
  throw std::runtime_error(fmt::format("cuBLASLt has no product of {} {}x{} and {} {}x{} here",
                                       c10::toString(product.a.scalar_type()), product.a.size(0), product.a.size(1),
                                       c10::toString(product.b.scalar_type()), product.b.size(0), product.b.size(1)));
}

// out, or what is there besides, of the matrices a and b as cuBLAS names them.
void multiply(const Product& product) {
  const MatrixLayout out = layout_of(product.out), a = layout_of(product.a), b = layout_of(product.b);
  const Workspace workspace;
  const cublasLtMatmulAlgo_t algorithm = algorithm_of(product, out, a, b);
  const float alpha = 1, beta = product.accumulate ? 1 : 0;
  check(cublasLtMatmul(at::cuda::getCurrentCUDABlasLtHandle(), product.operation.get(), &alpha, product.a.data_ptr(),
                       a.get(), product.b.data_ptr(), b.get(), &beta, product.out.data_ptr(), out.get(),
                       product.out.data_ptr(), out.get(), &algorithm, workspace.address, workspace.bytes,
                       cuda::current_stream()),
        "cublasLtMatmul");
}

}  // namespace

void cuda::fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const int64_t rows = a.value_XS.size(0), columns = out_XY.size(1), sum = a.value_XS.size(1);
  check_invariant(rows % 16 == 0 && columns % fp8_block == 0 && sum % fp8_block == 0,
                  "fp8_product: {} rows, a multiple of 16; {} columns, sums over {}, multiples of {}", rows, columns,
                  sum, fp8_block);
  const Operation operation = make_fp8_operation(a, b);
  // Rows are summed over in a weight's gradient alone, where no operand is a weight.
  const int64_t varying = b.blocks == Fp8Blocks::squares ? rows : sum;
  multiply({operation, {scale_mode(b), scale_mode(a)}, out_XY, b.value_XS, a.value_XS, varying, accumulate});
}

// grad_w^T = x^T grad_y: to cuBLAS, x and grad_y are transposed already.
void cuda::weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate) {
  const Operation operation = make_operation(CUBLAS_OP_N, CUBLAS_OP_T);
  multiply({operation, {}, grad_w_NM, x_RM, grad_y_RN, x_RM.size(0), accumulate});
}

}  // namespace conclave
