// The section `precision` of the job file. Number formats.
#pragma once

namespace conclave {

class Fields;
class KeyRules;

enum class Precision { automatic, fp32, bf16 };
enum class ExpertPrecision { compute, fp8 };
enum class RouterPrecision { compute, fp32 };

struct PrecisionConfig {
  Precision compute = Precision::automatic;  // automatic: bf16 where the hardware has it, else fp32
  Precision reduce = Precision::fp32;        // gradients are reduced in fp32 or, for half the traffic, in bf16
  ExpertPrecision experts = ExpertPrecision::compute;  // of the experts' products: as `compute`, or fp8 by blocks
  RouterPrecision router = RouterPrecision::fp32;      // of the router's logits and their gradient
};

void describe(PrecisionConfig& precision, Fields& to);
void check(const PrecisionConfig& precision, KeyRules& rules);

}  // namespace conclave
