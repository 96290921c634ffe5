#include "moe/dispatcher.h"

#include "moe/all_to_all_dispatcher.h"
#include "moe/local_dispatcher.h"

namespace conclave {

std::unique_ptr<Dispatcher> make_dispatcher(Communicator& expert, int64_t experts, StepClock& clock) {
  if (expert.size() == 1) return std::make_unique<LocalDispatcher>(experts);
  return std::make_unique<AllToAllDispatcher>(expert, experts, clock);
}

}  // namespace conclave
