// Attention of documents that lie behind one another.
#include <numeric>

#include "attention_case.h"
#include "base/error.h"
#include "kernels/attention_sink.h"
#include "kernels/cpu.h"

namespace conclave {
namespace {

struct Packed {
  AttentionShape shape;
  std::vector<int64_t> ends;
};

// Lengths one after the other, of which a sequence's end cuts those that reach beyond it.
Packed packed(AttentionShape shape, const std::vector<int64_t>& lengths) {
  Packed result{shape, {}};
  int64_t begin = 0;
  for (size_t i = 0; begin < tokens(shape); ++i) {
    begin = std::min(begin + lengths[i % lengths.size()], (begin / shape.sequence + 1) * shape.sequence);
    result.ends.push_back(begin);
  }
  return result;
}

std::string describe(const Packed& p) {
  std::string text = describe(p.shape) + ", documents end at";
  for (const int64_t end : p.ends) text += " " + std::to_string(end);
  return text;
}

// No, one and many documents in a sequence; of one token, of less and more than the kernels' blocks of queries and of
// keys; windows smaller and larger than they are.
std::vector<Packed> cases() {
  return {packed({1, 1, 1, 1, 8}, {1}),
          packed({2, 7, 4, 2, 16}, {7}),
          packed({2, 7, 4, 2, 16}, {1}),
          packed({3, 33, 6, 1, 40}, {5, 1, 40, 2}),
          packed({1, 300, 4, 4, 24}, {130, 1, 128, 41}),
          packed({2, 300, 4, 2, 16, 20}, {7, 90, 200}),
          packed({2, 300, 4, 2, 16, 130}, {290, 3}),
          packed({1, 1190, 2, 1, 8}, {600, 1, 515, 70}),
          packed({1, 140, 2, 1, 16, 1}, {3, 50}),
          packed({1, 150, 8, 2, 16}, {11, 2, 29}),
          packed({2, 65, 3, 3, 24, {}, 0.3, 16}, {30, 9}),
          packed({1, 600, 2, 1, 40, 200, 0.1, 8}, {450, 33})};
}

// `of` rows of a tensor by row, and of a logsumexp [B,N,S].
at::Tensor rows_of(const at::Tensor& rows, int64_t begin, int64_t end) {
  return rows.narrow(0, begin, end - begin);
}
at::Tensor rows_of_logsumexp(const at::Tensor& logsumexp_BNS, int64_t begin, int64_t end) {
  const int64_t sequence = logsumexp_BNS.size(2);
  return logsumexp_BNS[begin / sequence].narrow(1, begin % sequence, end - begin).unsqueeze(0);
}

AttentionShape alone(const AttentionShape& shape, int64_t rows) {
  AttentionShape one = shape;
  one.batch = 1;
  one.sequence = rows;
  one.documents = nullptr;
  return one;
}

// Each document by itself, through the textbook's form in double.
Results oracle(const at::Tensor& qkv, const at::Tensor& grad_out, const at::Tensor& sink, const Packed& p) {
  Results r{at::empty(grad_out.sizes(), at::kDouble),
            at::empty({p.shape.batch, p.shape.heads, p.shape.sequence}, at::kDouble),
            at::empty(qkv.sizes(), at::kDouble), at::zeros({p.shape.heads}, at::kDouble)};
  int64_t begin = 0;
  for (const int64_t end : p.ends) {
    const at::Tensor x = leaf(rows_of(qkv, begin, end)), s = sink.defined() ? leaf(sink) : at::Tensor();
    const auto [out, logsumexp] = textbook(x, alone(p.shape, end - begin), s);
    std::vector<at::Tensor> inputs = {x};
    if (s.defined()) inputs.push_back(s);
    const auto grads = gradients(out, rows_of(grad_out, begin, end).to(at::kDouble), inputs);
    rows_of(r.out, begin, end).copy_(out);
    rows_of_logsumexp(r.logsumexp, begin, end).copy_(logsumexp);
    rows_of(r.grad_qkv, begin, end).copy_(grads[0]);
    if (s.defined()) r.grad_sink += grads[1];
    begin = end;
  }
  return r;
}

struct Input {
  Input(const Packed& p, at::ScalarType dtype)
      : qkv(random_tensor({tokens(p.shape), p.shape.packed_columns()}, dtype)),
        grad_out(random_tensor({tokens(p.shape), p.shape.out_columns()}, dtype)) {}
  at::Tensor qkv, grad_out;
};

// Oracle: each document alone, by autograd in double. Tolerance: sums of S terms in double.
TEST(AttentionDocuments, reference_equals_each_document_alone) {
  for (const Packed& p : cases()) {
    if (p.shape.sequence > 300) continue;
    SCOPED_TRACE(describe(p));
    const Documents documents = documents_of(p.ends, p.shape.sequence, at::kCPU);
    AttentionShape shape = p.shape;
    shape.documents = &documents;
    const Input in(p, at::kDouble);
    const Results expected = oracle(in.qkv, in.grad_out, {}, p);
    const Results actual = run(in.qkv, in.grad_out, shape, reference::attention_forward, reference::attention_backward);
    expect_close("out", actual.out, expected.out, {1e-12, 1e-13});
    expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {1e-12, 1e-13});
    expect_close("grad_qkv", actual.grad_qkv, expected.grad_qkv, {1e-12, 1e-12});
  }
}

// The same, with the tolerances of attention_test.cpp; with sinks, whose gradient is the sum over all documents.
TEST(AttentionDocuments, equal_each_document_alone) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const bool sinks : {false, true})
      for (const Packed& p : cases()) {
        SCOPED_TRACE(describe(p) + (sinks ? ", sinks" : ""));
        const Documents documents = documents_of(p.ends, p.shape.sequence, at::kCPU);
        AttentionShape shape = p.shape;
        shape.documents = &documents;
        shape.sinks = sinks;
        const Input in(p, dtype);
        const at::Tensor sink = sinks ? random_tensor({shape.heads}).to(dtype) : at::Tensor();
        const Results expected = oracle(in.qkv, in.grad_out, sink, p);
        Results r{garbage(in.grad_out.sizes(), dtype), garbage({shape.batch, shape.heads, shape.sequence}),
                  garbage(in.qkv.sizes(), dtype), at::zeros({shape.heads})};
        attention_forward(r.out, r.logsumexp, in.qkv, shape);
        if (sinks) sink_forward_(r.out, r.logsumexp, sink);
        attention_backward(r.grad_qkv, in.grad_out, r.out, r.logsumexp, in.qkv, shape);
        if (sinks) sink_backward(r.grad_sink, in.grad_out, r.out, r.logsumexp, sink);
        const bool fp32 = dtype == at::kFloat;
        const auto of_scale = [&](double roundings, const at::Tensor& t) {
          return Tolerance{0, (fp32 ? 60 * eps_fp32 : roundings * rounding(dtype)) * t.abs().max().item<double>()};
        };
        expect_close("logsumexp", r.logsumexp, expected.logsumexp, {0, fp32 ? 60 * eps_fp32 : 1.0 / (1 << 13)});
        expect_close("out", r.out, expected.out, of_scale(5, expected.out));
        expect_close("grad_qkv", r.grad_qkv, expected.grad_qkv, of_scale(9, expected.grad_qkv));
        const double rows = static_cast<double>(tokens(shape)), scale = 5 * std::sqrt(rows * shape.value_dim());
        expect_close("grad_sink", r.grad_sink, expected.grad_sink,
                     {0, (fp32 ? 60 * eps_fp32 : 5 * rounding(dtype)) * scale});
      }
}

// The CPU's kernel begins anew with each document: forward it gives the bits of the document alone.
TEST(AttentionDocuments, of_the_cpu_have_the_bits_of_each_document_alone) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const Packed& p : cases()) {
      SCOPED_TRACE(describe(p));
      const Documents documents = documents_of(p.ends, p.shape.sequence, at::kCPU);
      AttentionShape shape = p.shape;
      shape.documents = &documents;
      const Input in(p, dtype);
      const Results together = run(in.qkv, in.grad_out, shape, cpu::attention_forward, cpu::attention_backward);
      int64_t begin = 0;
      for (const int64_t end : p.ends) {
        const Results one = run(rows_of(in.qkv, begin, end).contiguous(), rows_of(in.grad_out, begin, end).contiguous(),
                                alone(p.shape, end - begin), cpu::attention_forward, cpu::attention_backward);
        expect_identical("out", rows_of(together.out, begin, end).contiguous(), one.out);
        expect_identical("logsumexp", rows_of_logsumexp(together.logsumexp, begin, end).contiguous(), one.logsumexp);
        begin = end;
      }
    }
}

// One document a sequence is what there is without documents, bit for bit.
TEST(AttentionDocuments, of_whole_sequences_change_no_bit) {
  for (const AttentionShape& without : {AttentionShape{2, 300, 4, 2, 16, 130}, AttentionShape{1, 700, 2, 1, 64}}) {
    const Packed p = packed(without, {without.sequence});
    const Documents documents = documents_of(p.ends, without.sequence, at::kCPU);
    AttentionShape with = without;
    with.documents = &documents;
    const Input in(p, at::kFloat);
    const Results a = run(in.qkv, in.grad_out, without, attention_forward, attention_backward);
    const Results b = run(in.qkv, in.grad_out, with, attention_forward, attention_backward);
    expect_identical("out", b.out, a.out);
    expect_identical("logsumexp", b.logsumexp, a.logsumexp);
    expect_identical("grad_qkv", b.grad_qkv, a.grad_qkv);
  }
}

TEST(AttentionDocuments, do_not_depend_on_threads) {
  const Packed p = packed({2, 700, 6, 2, 16}, {300, 2, 77, 400});
  const Documents documents = documents_of(p.ends, p.shape.sequence, at::kCPU);
  AttentionShape shape = p.shape;
  shape.documents = &documents;
  const Input in(p, at::kFloat);
  expect_same_for_any_threads([&] {
    const Results r = run(in.qkv, in.grad_out, shape, attention_forward, attention_backward);
    return std::vector<at::Tensor>{r.out, r.logsumexp, r.grad_qkv};
  });
}

TEST(Documents, know_their_positions_and_bounds) {
  const Documents documents = documents_of({3, 4, 7, 14}, 7, at::kCPU);
  expect_identical("bounds", documents.bounds, at::tensor({0, 3, 4, 7, 14}, at::kInt));
  expect_identical("position", documents.position_T, at::tensor({0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6}, at::kInt));
  EXPECT_EQ(documents.longest, 7);
  EXPECT_EQ(documents.count(), 4);
  EXPECT_EQ(documents.first_of(0), 0);
  EXPECT_EQ(documents.first_of(1), 3);
  EXPECT_EQ(documents.first_of(2), 4);
}

TEST(Documents, refuse_what_lies_in_no_sequence) {
  EXPECT_THROW(documents_of({3, 9, 14}, 7, at::kCPU), InvariantError);  // across a sequence's end
  EXPECT_THROW(documents_of({3, 3, 7}, 7, at::kCPU), InvariantError);   // an empty one
  EXPECT_THROW(documents_of({7, 11}, 7, at::kCPU), InvariantError);     // half a sequence
  const Documents documents = documents_of({4, 8}, 4, at::kCPU);
  AttentionShape shape{1, 8, 2, 1, 8};
  shape.documents = &documents;
  at::Tensor out = at::zeros({8, 16}), logsumexp = at::zeros({1, 2, 8});
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({8, 32}), shape), InvariantError);
}

}  // namespace
}  // namespace conclave
