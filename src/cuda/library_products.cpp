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
#include <memory>
#include <shared_mutex>
#include <stdexcept>

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

// Of a matrix [rows, columns] with contiguous rows: to cuBLAS, whose first dim is the contiguous one, its transpose.
MatrixLayout layout_of(const at::Tensor& matrix) {
  cublasLtMatrixLayout_t layout = nullptr;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  check(cublasLtMatrixLayoutCreate(&layout, type_of(matrix), static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows), std::max(columns, matrix.stride(0))),
        "cublasLtMatrixLayoutCreate");
  return MatrixLayout(layout);
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

// out, or what is there besides, of the matrices a and b as cuBLAS names them.
void multiply(const at::Tensor& out, const Operation& operation, const at::Tensor& a, const at::Tensor& b,
              bool accumulate) {
  const MatrixLayout layout_a = layout_of(a), layout_b = layout_of(b), layout_out = layout_of(out);
  cublasLtMatmulPreference_t created = nullptr;
  check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
  const Preference preference(created);
  const Workspace workspace;
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace.bytes);
  // Parts of a sum are added in fp32, in a fixed order.
  set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(out));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(out));

  cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
  cublasLtMatmulHeuristicResult_t chosen{};
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, operation.get(), layout_a.get(), layout_b.get(), layout_out.get(),
                                       layout_out.get(), preference.get(), 1, &chosen, &found),
        "cublasLtMatmulAlgoGetHeuristic");
  if (found == 0)
    throw std::runtime_error(fmt::format("cuBLASLt has no product of {} {}x{} and {} {}x{} here",
                                         c10::toString(a.scalar_type()), a.size(0), a.size(1),
                                         c10::toString(b.scalar_type()), b.size(0), b.size(1)));
  const float alpha = 1, beta = accumulate ? 1 : 0;
  check(cublasLtMatmul(handle, operation.get(), &alpha, a.data_ptr(), layout_a.get(), b.data_ptr(), layout_b.get(),
                       &beta, out.data_ptr(), layout_out.get(), out.data_ptr(), layout_out.get(), &chosen.algo,
                       workspace.address, workspace.bytes, cuda::current_stream()),
        "cublasLtMatmul");
}

}  // namespace

void cuda::fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const int64_t rows = a.value_XS.size(0), columns = out_XY.size(1), sum = a.value_XS.size(1);
  check_invariant(rows % 16 == 0 && columns % fp8_block == 0 && sum % fp8_block == 0,
                  "fp8_product: {} rows, a multiple of 16; {} columns, sums over {}, multiples of {}", rows, columns,
                  sum, fp8_block);
  multiply(out_XY, make_fp8_operation(a, b), b.value_XS, a.value_XS, accumulate);
}

// grad_w^T = x^T grad_y: to cuBLAS, x and grad_y are transposed already.
void cuda::weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate) {
  multiply(grad_w_NM, make_operation(CUBLAS_OP_N, CUBLAS_OP_T), x_RM, grad_y_RN, accumulate);
}

}  // namespace conclave
