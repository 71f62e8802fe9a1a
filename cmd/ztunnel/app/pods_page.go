// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
)

// A podLine is one pod on /debug/pods.
type podLine struct {
	UID            string `json:"uid"`
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	// State tells, other than the dump, a parked pod from one that ends.
	State   string      `json:"state"`
	Capture string      `json:"capture,omitempty"` // the tier
	Late    *lateLine   `json:"late,omitempty"`    // the agent found the pod running
	Checks  []checkLine `json:"checks,omitempty"`
	// Waiting are the connections that cannot be judged yet.
	Waiting   dataplane.Waiting `json:"waiting"`
	Error     string            `json:"error,omitempty"`     // what is wrong now
	LastError *troubleAgo       `json:"lastError,omitempty"` // what was wrong the last time
}

// A lateLine is what became of the connections that a pod had before it was
// captured.
type lateLine struct {
	Ended int    `json:"ended"`
	Error string `json:"error,omitempty"` // why some may live on
}

// A checkLine is how one of a pod's test connections ended the last time.
type checkLine struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, or the error
	Age    string `json:"age"`
}

// A troubleAgo is an error with its age.
type troubleAgo struct {
	Error string `json:"error"`
	Age   string `json:"age"`
}

// podPage is /debug/pods.
func (n *node) podPage() []podLine {
	now := time.Now()
	statuses := n.inpod.Pods()
	out := make([]podLine, len(statuses))
	for i, s := range statuses {
		out[i] = podLineOf(s, now)
	}
	return out
}

func podLineOf(s inpod.Status, now time.Time) podLine {
	line := podLine{
		UID: s.Pod.UID, Name: s.Pod.Name, Namespace: s.Pod.Namespace, ServiceAccount: s.Pod.ServiceAccount,
		State: string(s.State),
	}
	if s.Err != nil {
		line.Error = s.Err.Error()
	}
	if s.LastErr != nil {
		line.LastError = &troubleAgo{s.LastErr.Error(), age(now, s.LastErrAt)}
	}
	if s.Pod.Late {
		line.Late = &lateLine{}
	}
	if p, ok := s.Proxy.(*podProxy); ok {
		if ended, err := p.capture.Ended(); line.Late != nil {
			line.Late.Ended = ended
			if err != nil {
				line.Late.Error = err.Error()
			}
		}
		line.Capture = p.capture.Tier().String()
		line.Checks = checkLines(p.capture.Checks(), now)
		line.Waiting = p.proxy.Waiting()
	}
	return line
}

func checkLines(checks []capture.Check, now time.Time) []checkLine {
	var lines []checkLine
	for _, c := range checks {
		line := checkLine{Check: c.Name, Result: "ok", Age: age(now, c.At)}
		if c.Err != nil {
			line.Result = c.Err.Error()
		}
		lines = append(lines, line)
	}
	return lines
}

func age(now, at time.Time) string { return now.Sub(at).Round(time.Millisecond).String() }

// capturedPods tells the metrics of each pod that is served.
func (n *node) capturedPods(yield func(tier string, healthy bool)) {
	for _, s := range n.inpod.Pods() {
		if p, ok := s.Proxy.(*podProxy); ok && s.State == inpod.StateUp {
			yield(p.capture.Tier().String(), s.Err == nil)
		}
	}
}

// maxAiling is how many pods the readiness page names.
const maxAiling = 10

// ailing are the pods for which the node is not ready, with what is known of
// why, for the readiness page.
func (n *node) ailing() []string { return ailing(n.inpod.Pods()) }

func ailing(statuses []inpod.Status) []string {
	var lines []string
	more := 0
	for _, s := range statuses {
		switch {
		case s.Err == nil && s.State != inpod.StatePending:
			continue
		case len(lines) == maxAiling:
			more++
			continue
		}
		line := fmt.Sprintf("%s/%s: %s", s.Pod.Namespace, s.Pod.Name, s.State)
		if s.Err != nil {
			line += ": " + s.Err.Error()
		}
		lines = append(lines, line)
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return lines
}

// A counterLine is one counter on /debug/bpf.
type counterLine struct {
	Hook   string `json:"hook"`
	Reason string `json:"reason"`
	Value  uint64 `json:"value"`
}

// bpfPage is /debug/bpf.
func (n *node) bpfPage() []counterLine {
	counters := n.capture.Counters()
	out := make([]counterLine, len(counters))
	for i, c := range counters {
		out[i] = counterLine(c)
	}
	return out
}
