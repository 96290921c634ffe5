#pragma once

#include <initializer_list>

namespace conclave {

// Whether this CPU has all of these instruction sets, by the names of at::cpu::get_cpu_capabilities(): "avx512_bf16".
bool cpu_has(std::initializer_list<const char*> instruction_sets);

}  // namespace conclave
