#include "moe/dispatcher.h"

#include <utility>

#include "moe/all_to_all_dispatcher.h"
#include "moe/local_dispatcher.h"

namespace conclave {

double Dispatcher::take_waiting() {
  return std::exchange(waiting_, 0.0);
}

std::unique_ptr<Dispatcher> make_dispatcher(Communicator& expert, int64_t experts) {
  if (expert.size() == 1) return std::make_unique<LocalDispatcher>(experts);
  return std::make_unique<AllToAllDispatcher>(expert, experts);
}

}  // namespace conclave
