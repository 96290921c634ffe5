#include "config/precision_section.h"

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(PrecisionConfig& precision, Fields& to) {
  to.section("precision", "number formats");
  to.field("precision.compute", precision.compute,
           OneOf<Precision>{{{"auto", Precision::automatic}, {"fp32", Precision::fp32}, {"bf16", Precision::bf16}}},
           "auto: bf16 where the hardware has it, else fp32; weights and optimizer state are fp32 in any case");
  to.field("precision.reduce", precision.reduce,
           OneOf<Precision>{{{"fp32", Precision::fp32}, {"bf16", Precision::bf16}}},
           "in what gradients are summed over the ranks");
  to.field("precision.experts", precision.experts,
           OneOf<ExpertPrecision>{{{"compute", ExpertPrecision::compute}, {"fp8", ExpertPrecision::fp8}}},
           "the experts' products; fp8: e4m3, gradients e5m2, with a scale for each block; on H100 and H200, with "
           "precision.compute bf16");
  to.field("precision.router", precision.router,
           OneOf<RouterPrecision>{{{"compute", RouterPrecision::compute}, {"fp32", RouterPrecision::fp32}}},
           "the router's logits and their gradient; compute: as precision.compute, which is what Transformers does");
}

void check(const PrecisionConfig& precision, KeyRules& rules) {
  const bool fp8 = precision.experts == ExpertPrecision::fp8;
  rules.refuse_if(fp8 && precision.compute == Precision::fp32, {"precision.experts", "precision.compute"},
                  "precision.experts is fp8, but precision.compute is fp32, and fp8 products begin and end in bf16.",
                  "Set precision.compute to bf16 or auto, or precision.experts to compute.");
}

}  // namespace conclave
