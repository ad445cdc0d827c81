#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int error_set(struct error *error, int code, const char *format, ...)
{
	code = code ? abs(code) : EIO;
	if (error) {
		va_list arguments;

		error->code = code;
		va_start(arguments, format);
		vsnprintf(error->text, sizeof(error->text), format, arguments);
		va_end(arguments);
	}
	return -code;
}

int error_prefix(struct error *error, const char *format, ...)
{
	char rest[sizeof(error->text)];
	va_list arguments;
	size_t length;

	if (!error)
		return -EIO;
	memcpy(rest, error->text, sizeof(rest));
	va_start(arguments, format);
	vsnprintf(error->text, sizeof(error->text), format, arguments);
	va_end(arguments);
	length = strlen(error->text);
	snprintf(error->text + length, sizeof(error->text) - length, "%s", rest);
	return error->code ? -error->code : -EIO;
}
