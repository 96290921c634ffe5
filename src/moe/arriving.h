// Something on its way between ranks. finish(...) waits for it, puts it where it belongs, and ends the object.
#pragma once

#include <functional>
#include <utility>

namespace conclave {

template <class Signature>
class Arriving;

template <class Result, class... Places>
class Arriving<Result(Places...)> {
 public:
  Arriving() = default;
  explicit Arriving(std::function<Result(Places...)> finish) : finish_(std::move(finish)) {}

  Result finish(Places... places) { return std::exchange(finish_, nullptr)(std::forward<Places>(places)...); }

 private:
  std::function<Result(Places...)> finish_;
};

}  // namespace conclave
