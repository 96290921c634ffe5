// The torch wheel holds the Gloo library inside libtorch_cpu.so but not its headers, which ProcessGroupGloo.hpp
// includes. These declarations are just enough to compile that header. Invariant: no object of these types is made,
// copied or looked into by our code; c10d alone does that.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
