// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"fmt"
)

// A verb compiles what follows it on a line.
type verb func(r *reader) action

// verbs are all there are. docs/conformance.md has each.
func verbs() map[string]verb {
	return map[string]verb{
		"http": httpVerb, "json": jsonVerb,
		"dial": dialVerb, "listen": listenVerb, "accept": acceptVerb, "send": sendVerb, "expect": expectVerb, "echo": echoVerb,
		"shut": shutVerb, "close": closeVerb, "reset": resetVerb, "ends": endsVerb, "peer": peerVerb, "call": callVerb,
		"refused": refusedVerb, "socks": socksVerb,
		"tunnel": tunnelVerb, "ask": askVerb, "settings": settingsVerb, "goaway": goawayVerb, "certificate": certificateVerb,
		"serve": serveVerb, "take": takeVerb, "answer": answerVerb, "header": headerVerb, "headers": headersVerb, "hello": helloVerb,
		"log": logVerb, "nolog": nologVerb, "fields": fieldsVerb, "metric": metricVerb, "labels": labelsVerb,
		"dns": dnsVerb, "record": recordVerb, "wire": wireVerb,
		"run": runVerb, "signal": signalVerb, "exit": exitVerb, "start": startVerb, "ready": readyVerb, "alive": aliveVerb,
		"zds": zdsVerb, "enrol": enrolVerb, "unenrol": unenrolVerb, "agent": agentVerb,
		"state:": stateVerb, "xds": xdsVerb,
	}
}

// compile reads a step. "await" before a step that looks at something has it
// look until it sees what it wants.
func compile(r *reader) (action, error) {
	for _, w := range r.words {
		if err := checkVariables(w.text); err != nil {
			return nil, err
		}
	}
	await := r.maybe("await")
	name := r.bare("a verb")
	v, ok := verbs()[name]
	if r.err == nil && !ok {
		return nil, fmt.Errorf("%q is no verb", name)
	}
	if r.err != nil {
		return nil, r.err
	}
	if name != "state:" {
		r.noBlock()
	}
	if awaitable := name == "http" || name == "json" || name == "dns" || name == "call" || name == "refused" || name == "xds"; await && !awaitable {
		return nil, fmt.Errorf("%s does not go with await", name)
	}
	act := v(r)
	r.end()
	if r.err != nil {
		return nil, r.err
	}
	if await {
		return func(ctx context.Context, p *player) error {
			return eventually(ctx, func() error { return act(ctx, p) })
		}, nil
	}
	return act, nil
}

// stateVerb replaces the mesh in the middle of a scenario.
func stateVerb(r *reader) action {
	state, err := parseState(r.block)
	if err != nil {
		r.fail("%w", err)
	}
	return func(ctx context.Context, p *player) error { return p.apply(ctx, state) }
}
