/*
 * Names and words that are not UTF-8, as those of a system that once was set up for Latin-1: JSON cannot
 * carry their bytes. So each byte that is no part of UTF-8 is kept as a character of its own, U+EF80 to
 * U+EFFF for the bytes 0x80 to 0xff, from the configuration file on (src/config); where a text leaves Ferry,
 * as a path for the kernel or a guest's command line, it becomes the byte that it was.
 */
#pragma once

#include <stddef.h>

#define RAW_BYTE_FIRST 0xef00u /* and the byte */

/* Turns the characters into the bytes that they stand for, in place. Returns what is left of `size`. */
size_t raw_bytes_of(char *text, size_t size);

#define HOST_PATH_MAX 4097

/* The path as the kernel knows it. Returns `path`, which gets it; one that is too long stays so for the
 * kernel to refuse. */
const char *host_path(const char *text, char path[static HOST_PATH_MAX]);
