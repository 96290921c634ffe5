// Work that overlaps on the device.
#pragma once

#include <cstdint>
#include <functional>

namespace conclave::cuda {

// f(0) to f(count - 1), what they launch by turns on the current stream and on a second one: where one's last blocks
// leave processors idle, the next one's begin. All follows what the current stream was given so far, and what it is
// given afterwards follows all. None of them may write what another one reads or writes, or allocate (but for
// cuBLAS's workspace of the stream, which stays).
void on_two_streams(int64_t count, const std::function<void(int64_t)>& f);

}  // namespace conclave::cuda
