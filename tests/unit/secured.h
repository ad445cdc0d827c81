/* A listening socket on loopback; hosts' identities for tests of the secured line, and `secure` as xend puts
 * it into a carrier's job. */
#pragma once

#include "base/identity.h"

#include <jansson.h>

struct test_host {
	char *pem;
	char fingerprint[FINGERPRINT_SIZE];
};

void test_host_begin(struct test_host *host);
void test_host_end(struct test_host *host);

/* An entry of `trusted`. */
json_t *trusted(const char *host, const char *address, const char *fingerprint);
/* A descriptor for the job; `entries` (an array) is used up, `authority` may be NULL. */
int secure_fd(const struct test_host *host, json_t *entries, const char *authority);

int listen_here(int *port);
