// Counts where the host waits for the device: copies to the host and reads of single numbers, by the calling thread.
// PyTorch warns of each when asked to; the warnings are counted instead of printed. Waits that a program asks for by
// name (synchronize()) do not count.
#pragma once

#include <cstdint>

namespace conclave {

// From now on, from zero; or no longer.
void count_synchronizations(bool on);
int64_t synchronizations();

}  // namespace conclave
