/*
 * Cleanup attributes: what a block opens is closed when the block is left.
 *
 *	_cleanup_close_ int fd = open(...);
 *	_cleanup_free_ char *text = strdup(...);
 *	_cleanup_json_ json_t *reply = json_object();
 *	...
 *	return take_fd(&fd);	// ownership leaves the block
 */
#pragma once

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(function) __attribute__((cleanup(function)))
#define _cleanup_free_ _cleanup_(cleanup_free)
#define _cleanup_close_ _cleanup_(cleanup_close)
#define _cleanup_fclose_ _cleanup_(cleanup_fclose)
#define _cleanup_json_ _cleanup_(cleanup_json)

static inline void cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

static inline void cleanup_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_fclose(FILE **file)
{
	if (*file)
		fclose(*file);
}

static inline void cleanup_json(json_t **json)
{
	json_decref(*json);
}

/* Gives the descriptor away: the variable no longer owns it. */
static inline int take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/* Gives the pointer away: the variable no longer owns it. */
#define take_pointer(variable)                                                                               \
	({                                                                                                   \
		__typeof__(variable) taken_ = (variable);                                                    \
		(variable) = NULL;                                                                           \
		taken_;                                                                                      \
	})

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define CONTAINER_OF(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))
#define ALIGN_UP(value, to) (((value) + (to)-1) / (to) * (to))
