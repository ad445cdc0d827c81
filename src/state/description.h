/*
 * What accompanies a guest's memory in a checkpoint and in an OFFER: xend's record
 * of the domain, and where the guest sees its RAM. docs/checkpoint-format.md,
 * "Description".
 */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define DESCRIPTION_MAX (56u << 10) /* bytes of JSON; leaves room in a channel message of 64 KiB */
#define UUID_TEXT_SIZE 37

/* A new description (the caller's); NULL with a sentence where the domain is not as description_check wants
 * it. */
json_t *description_new(json_t *domain, json_t *regions, uint64_t ram_size, struct error *error);

/* Adds what is told of the guest's disks (state/saved_disk.h); anything but an array is left out. */
int description_add_disks(json_t *description, json_t *disks, struct error *error);

/* Reads and checks a description that somebody else wrote. NULL with a sentence where it is wrong. */
json_t *description_parse(const char *text, size_t size, uint64_t ram_size, struct error *error);

/* 0 where the regions of the description, if it has any, are those of the machine that shall take the RAM. */
int description_match_regions(const json_t *description, const json_t *regions, struct error *error);

/* 16 bytes in the order of the text, 8-4-4-4-12 hexadecimal digits. -EINVAL, without a sentence, for other
 * text. */
int uuid_from_text(const char *text, uint8_t uuid[16]);
void uuid_to_text(const uint8_t uuid[16], char text[UUID_TEXT_SIZE]);
