/*
 * The API (docs/internal/api.md): a table of routes, served over HTTP on the unix
 * socket. Each request is answered by a worker.
 */
#pragma once

#include "xend/reply.h"
#include "xend/xend.h"

struct call {
	struct xend *xend;
	struct reply *reply;
	char domain[160]; /* the path's <D>, decoded */
	bool history;     /* ?history=1 */
	json_t *body;     /* an object, or NULL where the request had none that is one */
	char *bytes;      /* the body as it came */
	size_t size;
};

/* What is done about a request. */
struct route {
	const char *method, *path; /* "*" stands for the domain; NULL: after the last */
	void (*handle)(struct call *call);
	bool brief;       /* it waits for nobody */
	unsigned running; /* with the lock */
};

extern struct route api_routes[];

/* Listens on the API socket (dispatch.c). */
int api_start(struct xend *xend, struct error *error);

/* Handlers that have files of their own. */
void console_stream(struct call *call);
void console_input(struct call *call);
void info_show(struct call *call);
void log_show(struct call *call);
void trust_show(struct call *call);
void trust_identify(struct call *call);
void trust_add(struct call *call);
void trust_forget(struct call *call);
