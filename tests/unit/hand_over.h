/*
 * What tests of hand-overs share: each runs in clear text and between hosts that trust each other, with a
 * carrier on each side to which the test is xend.
 */
#pragma once

#include "fake_guest.h"
#include "secured.h"

#define UUID "cc0029f5-10a1-e6d0-3c92-19b0ea021f21"
#define TICKET "0123abcd-10a1-e6d0-3c92-19b0ea021f21"
#define MIB_PAGES 256u

struct secured {
	bool on;
	struct test_host source, dest;
};

extern struct secured secured;

/* Set-up and teardown of the secured runs. */
int secure_all(void **state);
int secure_no_more(void **state);

#define BOTH_WAYS(test)                                                                                      \
	cmocka_unit_test(test),                                                                              \
	{                                                                                                    \
		"secured: " #test, test, secure_all, secure_no_more, NULL                                    \
	}

/* Says the job with `secure` added, where lines are secured. `fds` has room for one more. */
void say_job(struct carrier_thread *carrier, json_t *job, int *fds, unsigned count, bool source);
/* Says a verb alone; hears an event and forgets it. */
void say(struct carrier_thread *carrier, const char *verb);
void pass(struct carrier_thread *carrier, const char *event);
/* Whoever connects there within a minute; -1: nobody. */
int accept_from(int listener);

/* The source's clock was set forward by so much between the handshake and RECEIVED, where peer_answer_clock
 * is wrapped. */
extern int64_t set_forward_ns;
