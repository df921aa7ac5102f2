// Package lease reads through a cache that walsweep keeps right, with the in-key lease.
//
// Needs go-redis v9, and `walsweep setup --lease` once. See docs/lease.md.
//
//	cache := lease.New(redis.NewClient(&redis.Options{}))
//	page, err := cache.GetOrCompute(ctx, key, func(ctx context.Context) (*string, error) { … })
package lease

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log"
	mathrand "math/rand"
	"time"

	"github.com/redis/go-redis/v9"
)

// Lease holds a client and times, of whole milliseconds. Lease is longer than a computation takes,
// or its value is not stored. A TTL of 0 keeps a value until it is removed. Who waits for another
// reader longer than Patience computes, too.
type Lease struct {
	Client               redis.UniversalClient
	Lease, TTL, Patience time.Duration
}

// New takes a client of the primary.
func New(client redis.UniversalClient) *Lease {
	return &Lease{Client: client, Lease: 10 * time.Second, Patience: 2 * time.Second}
}

// GetOrCompute gives the cached value, else what compute gives: a text, or nil to store nothing.
//
// compute must read the database itself, on the primary, in a snapshot taken after the call. Its
// error goes to the caller; what Redis refuses is logged, and costs a computation.
func (l *Lease) GetOrCompute(
	ctx context.Context, key string, compute func(context.Context) (*string, error),
) (*string, error) {
	state, text := l.ask(ctx, key)
	if state == "HIT" {
		return &text, nil
	}
	var value *string
	if state == "MISS" {
		// Also after a panic: value is nil then.
		defer func() { l.end(key, text, value) }()
	}
	computed, err := compute(ctx)
	if err != nil {
		return nil, err
	}
	value = computed
	return computed, nil
}

// ask gives HIT and the value, MISS and the lease, or NONE: compute without a lease.
func (l *Lease) ask(ctx context.Context, key string) (state, text string) {
	deadline := time.Now().Add(l.Patience)
	pause := 5 * time.Millisecond
	for {
		var token [16]byte
		if _, err := rand.Read(token[:]); err != nil {
			log.Printf("draw a token: %v", err)
			return "NONE", ""
		}
		keys, ms := []string{key}, l.Lease.Milliseconds()
		call := l.Client.FCall(ctx, "walsweep_lease_get", keys, hex.EncodeToString(token[:]), ms)
		reply, err := call.StringSlice()
		if err == nil && len(reply) == 0 {
			err = fmt.Errorf("an empty reply")
		}
		if err != nil {
			log.Printf("read %s from the cache: %v", key, err)
			return "NONE", ""
		}
		if len(reply) == 2 {
			return reply[0], reply[1]
		}
		if time.Now().Add(pause).After(deadline) {
			return "NONE", ""
		}
		// Not all at once: each waits half to all of a pause that doubles up to 100 ms.
		wait := time.NewTimer(pause/2 + time.Duration(mathrand.Int63n(int64(pause/2))))
		select {
		case <-ctx.Done():
			wait.Stop()
			return "NONE", ""
		case <-wait.C:
		}
		if pause *= 2; pause > 100*time.Millisecond {
			pause = 100 * time.Millisecond
		}
	}
}

// end stores the value if the lease stands; without a value it gives the lease back. A caller that
// gave up meanwhile leaves no lease behind: it has a context of its own.
func (l *Lease) end(key, lease string, value *string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	keys := []string{key}
	var err error
	switch {
	case value == nil:
		err = l.Client.FCall(ctx, "walsweep_lease_release", keys, lease).Err()
	case l.TTL > 0:
		// 0 is no error: the key was removed meanwhile, and the next reader computes.
		ms := l.TTL.Milliseconds()
		err = l.Client.FCall(ctx, "walsweep_lease_set", keys, lease, *value, ms).Err()
	default:
		err = l.Client.FCall(ctx, "walsweep_lease_set", keys, lease, *value).Err()
	}
	if err != nil {
		log.Printf("write %s to the cache: %v", key, err)
	}
}
