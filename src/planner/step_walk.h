// A step of the engine without its tensors: the same order of units, gathers, computations and reductions as
// train/forward_backward.cpp, sharding/unit_schedule.cpp and memory/activation_store.cpp, told to an observer. Traffic,
// memory and time are three observers of one walk; tests hold each against the engine.
#pragma once

#include <vector>

#include "mesh/checked_job.h"

namespace conclave {

// What happens, in the order in which it happens. Units are counted in forward order: 0 the embedding, 1.. the layers,
// last the head.
class StepObserver {
 public:
  virtual ~StepObserver() = default;

  virtual void begin_micro_step() {}
  virtual void end_micro_step() {}
  virtual void begin_gather(size_t unit) {}   // the unit is not here
  virtual void finish_gather(size_t unit) {}  // before it is used
  virtual void free(size_t unit) {}           // it was gathered
  virtual void embedding_forward() {}
  virtual void layer_forward(size_t layer) {}
  // The layer's kept input leaves the device beside the computation, comes back, and is needed.
  virtual void begin_offload(size_t layer) {}
  virtual void finish_offload(size_t layer) {}
  virtual void begin_return(size_t layer) {}
  virtual void finish_return(size_t layer) {}
  virtual void begin_balance() {}  // the balancing statistics' sum over the world
  virtual void finish_balance() {}
  virtual void begin_gradients(size_t unit) {}  // the unsharded gradient is about to be written
  virtual void head() {}                        // forward, and in training backward
  virtual void layer_backward(size_t layer) {}
  virtual void embedding_backward() {}
  virtual void begin_reduce(size_t unit, bool first, bool last) {}
  virtual void finish_reduce(size_t unit, bool last) {}
  virtual void loss_sum() {}  // over the world
  virtual void gradient_norm() {}
  virtual void update() {}
};

// All micro-steps and the optimizer.
void walk_step(const CheckedJob& job, StepObserver& observer);
void walk_micro_step(const CheckedJob& job, bool first, bool last, StepObserver& observer);
// A micro-step of validation.
void walk_evaluation(const CheckedJob& job, StepObserver& observer);

}  // namespace conclave
