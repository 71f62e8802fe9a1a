// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
)

// resourceType is the type behind a word.
func resourceType(word string) string {
	if word == "address" {
		return fakeistiod.AddressType
	}
	return fakeistiod.AuthorizationType
}

// xdsVerb: xds push address|authorization NAME 0x... | xds nacked "text" |
// xds restart | xds asked address|authorization FIELD = "value" |
// xds streams > n
func xdsVerb(r *reader) action {
	switch r.oneOf("matter", "push", "nacked", "restart", "asked", "stop", "start") {
	case "push":
		return xdsPush(r)
	case "nacked":
		text := r.text("a text")
		return func(ctx context.Context, p *player) error {
			return eventually(ctx, func() error { return nacked(p.suite.control.Requests(), text) })
		}
	case "restart":
		return func(_ context.Context, p *player) error {
			return p.suite.Stage.Inside("outside", p.suite.control.Restart)
		}
	case "stop":
		return func(_ context.Context, p *player) error {
			p.suite.control.Stop()
			p.later(func() { _ = p.suite.Stage.Inside("outside", p.suite.control.Restart) })
			return nil
		}
	case "start":
		return func(_ context.Context, p *player) error {
			return p.suite.Stage.Inside("outside", p.suite.control.Restart)
		}
	}
	url := resourceType(r.oneOf("type", "address", "authorization"))
	field := r.bare("a field")
	r.want("=")
	want := r.text("a value")
	return func(_ context.Context, p *player) error {
		got, err := asked(p.suite.control.Requests(), url, field)
		if err != nil {
			return err
		}
		value, err := p.expand(want)
		if err != nil {
			return err
		}
		if prefix, ok := strings.CutSuffix(value, "*"); got != value && !(ok && value != "*" && strings.HasPrefix(got, prefix)) {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	}
}

func xdsPush(r *reader) action {
	url, name := resourceType(r.oneOf("type", "address", "authorization")), r.bare("a name")
	payload, err := hex.DecodeString(strings.TrimPrefix(r.bare("bytes in hex"), "0x"))
	if err != nil {
		r.fail("%w", err)
	}
	return func(_ context.Context, p *player) error {
		p.suite.control.World.Put(fakeistiod.Resource{Type: url, Name: name, Payload: payload})
		p.later(func() { p.suite.control.World.Remove(url, name) })
		return nil
	}
}

func nacked(all []fakeistiod.Request, text string) error {
	for _, q := range all {
		if q.GetErrorDetail() != nil && strings.Contains(q.GetErrorDetail().GetMessage(), text) {
			if c := q.GetErrorDetail().GetCode(); c != 0 {
				return fmt.Errorf("the code is %d", c)
			}
			return nil
		}
	}
	return errors.New("no such refusal came")
}

// asked is a field of the first request of a type on the last stream.
func asked(all []fakeistiod.Request, url, field string) (string, error) {
	last := 0
	for _, q := range all {
		last = max(last, q.Stream)
	}
	for _, q := range all {
		if q.Stream != last || q.GetTypeUrl() != url {
			continue
		}
		meta, isMeta := strings.CutPrefix(field, "metadata.")
		head, isHead := strings.CutPrefix(field, "header.")
		switch {
		case isMeta:
			return q.GetNode().GetMetadata().GetFields()[meta].GetStringValue(), nil
		case isHead:
			return strings.Join(q.Metadata.Get(head), ","), nil
		case field == "subscribe":
			return strings.Join(q.GetResourceNamesSubscribe(), " "), nil
		case field == "unsubscribe":
			return strings.Join(q.GetResourceNamesUnsubscribe(), " "), nil
		case field == "node.id":
			return q.GetNode().GetId(), nil
		case field == "node.cluster":
			return q.GetNode().GetCluster(), nil
		case field == "nonce":
			return q.GetResponseNonce(), nil
		case field == "known":
			return strings.Join(slices.Sorted(maps.Keys(q.GetInitialResourceVersions())), " "), nil
		}
		return "", fmt.Errorf("%q is no field", field)
	}
	return "", errors.New("no such request came")
}
