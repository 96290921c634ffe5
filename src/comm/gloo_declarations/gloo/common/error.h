// See gloo/context.h: nothing of this file is needed.
#pragma once
