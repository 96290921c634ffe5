// What the router's entries demand of their arguments.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "kernels/router.h"

namespace conclave {
namespace {

TEST(RouterEntry, refuses_options_that_do_not_fit) {
  const at::Tensor logits = at::zeros({3, 4});
  EXPECT_THROW(route(logits, {.top_k = 5}), InvariantError);
  EXPECT_THROW(route(logits, {.top_k = 0}), InvariantError);
  EXPECT_THROW(route(logits, {.top_k = 1, .groups = 3}), InvariantError);
  EXPECT_THROW(route(logits, {.top_k = 1, .groups = 2, .top_groups = 3}), InvariantError);
  EXPECT_THROW(route(logits, {.top_k = 3, .groups = 2, .top_groups = 1}), InvariantError);
  EXPECT_THROW(route(logits, {.top_k = 1, .groups = 2, .best_of_group = 3}), InvariantError);
  const RouterOptions sigmoid{.top_k = 2, .scores = RouterScores::sigmoid};
  const Routing routing = route(logits, sigmoid);
  at::Tensor grad = at::empty_like(logits);
  EXPECT_THROW(route_backward(grad, routing, sigmoid, routing.weight_TK, {}, 0.1), InvariantError);
}

}  // namespace
}  // namespace conclave
