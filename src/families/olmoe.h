#pragma once

#include "families/family.h"

namespace conclave {

extern const Family olmoe_family;

}  // namespace conclave
