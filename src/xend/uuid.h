/* Random uuids (RFC 4122, version 4), as 36 characters in lower case. */
#pragma once

#include "base/error.h"

int uuid_draw(char uuid[37], struct error *error);
