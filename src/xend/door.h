/*
 * Who waits at the relocation port, and who of them is let in next. Being let in costs a process, so it is
 * rationed.
 *
 * A connection waits without one until it has said something; what it said is not looked at here. Then it
 * takes a ration of its address's and of its class's. Those whose address has brought a guest or is a trusted
 * host's are familiar: they have places and rations of their own, which no stranger takes. Where too many
 * wait, the one that has waited longest goes, of the address that has most here; who has rations left is let
 * in first. So one address, or some, cannot keep another out.
 *
 * Of IPv6 the first 64 bits count: the rest is for whoever has the network to choose.
 *
 * Nothing here waits or locks; times are the caller's, monotonic milliseconds.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define DOOR_CLASSES 2u
#define DOOR_WAITING_MAX 128u
#define DOOR_CALLERS 256u
#define DOOR_TEXT_SIZE 64u

enum door_class { DOOR_STRANGER, DOOR_FAMILIAR };

struct door_address {
	uint8_t bytes[16];
};

/* What is spent a thousand at a time, and fills again. */
struct ration {
	int64_t left;
	long long at_ms;
};

struct caller {
	struct door_address address;
	bool used, familiar;
	unsigned waiting; /* of its connections */
	struct ration ration;
	long long seen_ms;
};

struct waiting {
	int socket; /* owned */
	bool spoke;
	long long since_ms;
	struct caller *caller;
	char text[DOOR_TEXT_SIZE]; /* the address, numeric */
};

struct door {
	struct caller callers[DOOR_CALLERS];
	struct waiting waiting[DOOR_WAITING_MAX]; /* the oldest first */
	unsigned count;
	struct ration rations[DOOR_CLASSES];
	unsigned long turned_away;
};

struct door_address door_address_of(const struct sockaddr *address);

/* From now on connections from there are familiar. */
void door_familiar(struct door *door, struct door_address address, long long now_ms);

/* The socket is the door's, which closes it or, to make room, another one. */
void door_enter(
	struct door *door, int socket, struct door_address address, const char *text, long long now_ms);

/* Something has happened on its socket: it has spoken, or is gone and removed from the list (true). */
bool door_look(struct door *door, unsigned number);

/* Closes those who have waited for too long, whether they have said nothing or nobody had time for them. */
void door_expire(struct door *door, long long now_ms);

/* Takes the next one out who may be let in, where `open` allows its class: true, and *waiting is the
 * caller's. */
bool door_next(struct door *door, const bool open[DOOR_CLASSES], struct waiting *waiting, long long now_ms);

/* How long nothing can happen here but on the sockets; -1: for ever. */
int door_patience(const struct door *door, long long now_ms);

enum door_class door_class_of(const struct waiting *waiting);

void door_close(struct door *door);
