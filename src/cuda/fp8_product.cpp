// By cuBLASLt itself: of ATen's calls _scaled_mm_v2 takes block scales for two e4m3 matrices only (torch 2.11), and
// none adds to what is there. Layouts, types and scaling modes are those of cuBLAS's manual, "128-element 1D and
// 128x128 2D Block Scaling For FP8 Data Types". Its symbols come with libtorch_cuda.
#include "cuda/fp8_product.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <cublasLt.h>
#include <fmt/format.h>

#include <memory>
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

// Of a contiguous matrix [rows, columns]: to cuBLAS, whose first dim is the contiguous one, its transpose.
MatrixLayout layout_of(const at::Tensor& matrix) {
  cublasLtMatrixLayout_t layout = nullptr;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  check(cublasLtMatrixLayoutCreate(&layout, type_of(matrix), static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows), columns),
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

// out^T = b a^T: cuBLAS's A is b, its B is a.
Operation make_operation(const Fp8Matrix& a, const Fp8Matrix& b) {
  cublasLtMatmulDesc_t created = nullptr;
  check(cublasLtMatmulDescCreate(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Operation operation(created);
  set<int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set<int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
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

void multiply(const at::Tensor& out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const Operation operation = make_operation(a, b);
  const MatrixLayout layout_a = layout_of(a.value_XS), layout_b = layout_of(b.value_XS), layout_out = layout_of(out_XY);
  cublasLtMatmulPreference_t created = nullptr;
  check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
  const Preference preference(created);
  const size_t workspace_bytes = at::cuda::getCUDABlasLtWorkspaceSize();
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(b.value_XS));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a.value_XS));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(out_XY));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(out_XY));

  cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
  cublasLtMatmulHeuristicResult_t chosen{};
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, operation.get(), layout_b.get(), layout_a.get(), layout_out.get(),
                                       layout_out.get(), preference.get(), 1, &chosen, &found),
        "cublasLtMatmulAlgoGetHeuristic");
  if (found == 0)
    throw std::runtime_error(fmt::format("cuBLASLt has no fp8 product of {}x{} by {}x{} here", a.value_XS.size(0),
                                         a.value_XS.size(1), b.value_XS.size(0), b.value_XS.size(1)));
  const float alpha = 1, beta = accumulate ? 1 : 0;
  check(cublasLtMatmul(handle, operation.get(), &alpha, b.value_XS.data_ptr(), layout_b.get(), a.value_XS.data_ptr(),
                       layout_a.get(), &beta, out_XY.data_ptr(), layout_out.get(), out_XY.data_ptr(), layout_out.get(),
                       &chosen.algo, at::cuda::getCUDABlasLtWorkspace(), workspace_bytes, cuda::current_stream()),
        "cublasLtMatmul");
}

}  // namespace

void cuda::fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const int64_t rows = a.value_XS.size(0), columns = out_XY.size(1), sum = a.value_XS.size(1);
  check_invariant(rows % 16 == 0 && columns % fp8_block == 0 && sum % fp8_block == 0,
                  "fp8_product: {} rows, a multiple of 16; {} columns, sums over {}, multiples of {}", rows, columns,
                  sum, fp8_block);
  multiply(out_XY, a, b, accumulate);
}

}  // namespace conclave
