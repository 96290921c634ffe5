#pragma once

#include "families/family.h"

namespace conclave {

extern const Family llama_family;

}  // namespace conclave
