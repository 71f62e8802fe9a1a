// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A scrape is what a proxy's metrics page says.
type scrape struct{ samples []sample }

type sample struct {
	name   string
	labels []label
	value  float64
}

type label struct{ name, value string }

func (g *group) scrape(ctx context.Context, node string) (*scrape, error) {
	a, err := g.ask(ctx, request{place: node, method: http.MethodGet, page: "15020/metrics"})
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: %d", node, a.status)
	}
	return parseScrape(a.body)
}

// parseScrape reads the text format, which has a sample to a line.
func parseScrape(body []byte) (*scrape, error) {
	s := &scrape{}
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		one, err := parseSample(line)
		if err != nil {
			return nil, fmt.Errorf("metrics: %.200q: %w", line, err)
		}
		s.samples = append(s.samples, one)
	}
	return s, lines.Err()
}

func parseSample(line string) (s sample, err error) {
	var head, rest string
	if i := strings.IndexByte(line, '{'); i >= 0 {
		head = line[:i]
		if s.labels, rest, err = parseLabels(line[i:]); err != nil {
			return s, err
		}
	} else {
		head, rest, _ = strings.Cut(line, " ")
	}
	s.name = head
	value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	s.value, err = strconv.ParseFloat(value, 64)
	return s, err
}

// parseLabels reads {a="b",c="d"} and returns what follows.
func parseLabels(text string) (labels []label, rest string, err error) {
	if text == "" || text[0] != '{' {
		return nil, text, errors.New("labels without a brace")
	}
	text = text[1:]
	for {
		if rest, ok := strings.CutPrefix(text, "}"); ok {
			return labels, rest, nil
		}
		name, after, ok := strings.Cut(text, "=")
		if !ok {
			return nil, "", errors.New("labels that do not end")
		}
		literal, err := strconv.QuotedPrefix(after)
		if err != nil {
			return nil, "", fmt.Errorf("label %q without a value in quotes", name)
		}
		value, err := strconv.Unquote(literal)
		if err != nil {
			return nil, "", err
		}
		labels = append(labels, label{name, value})
		text = strings.TrimPrefix(after[len(literal):], ",")
	}
}

// series are the samples of a name that have all these labels.
func (s *scrape) series(name string, want []label) (found []sample) {
	for _, one := range s.samples {
		if one.name != name {
			continue
		}
		has := func(l label) bool { return slices.Contains(one.labels, l) }
		if !slices.ContainsFunc(want, func(l label) bool { return !has(l) }) {
			found = append(found, one)
		}
	}
	return found
}

func (s *scrape) sum(name string, want []label) (total float64, count int) {
	for _, one := range s.series(name, want) {
		total += one.value
		count++
	}
	return total, count
}

// readSeries reads name{label="value",...}.
func readSeries(r *reader) func(*player) (name string, labels []label, err error) {
	text := r.bare("a metric")
	split := func(text string) (name string, labels []label, err error) {
		i := strings.IndexByte(text, '{')
		if i < 0 {
			return text, nil, nil
		}
		labels, rest, err := parseLabels(text[i:])
		if err == nil && rest != "" {
			err = fmt.Errorf("%q after the labels", rest)
		}
		return text[:i], labels, err
	}
	if _, _, err := split(knownVariables().Replace(text)); r.err == nil && err != nil {
		r.fail("%w", err)
	}
	return func(p *player) (string, []label, error) {
		full, err := p.expand(text)
		if err != nil {
			return "", nil, err
		}
		return split(full)
	}
}

// metricVerb: metric node series (+= n | = n | > n | absent). The sum of all
// series that have the labels counts; += compares with before the scenario.
func metricVerb(r *reader) action {
	node, series := r.node(), readSeries(r)
	op := r.oneOf("comparison", "+=", "=", ">", "absent")
	want := 0
	if op != "absent" {
		want = r.number("number")
	}
	return func(ctx context.Context, p *player) error {
		name, labels, err := series(p)
		if err != nil {
			return err
		}
		look := func() error {
			now, err := p.scrape(ctx, node)
			if err != nil {
				return err
			}
			return compareMetric(now, p.scrapes[node], seriesOf{name, labels}, op, float64(want))
		}
		if err := eventually(ctx, look); err != nil {
			return err
		}
		time.Sleep(pollEvery) // what is counted twice passes the right number
		return look()
	}
}

type seriesOf struct {
	name   string
	labels []label
}

func compareMetric(now, before *scrape, s seriesOf, op string, want float64) error {
	got, count := now.sum(s.name, s.labels)
	if op == "absent" {
		if count > 0 {
			return fmt.Errorf("there are %d series", count)
		}
		return nil
	}
	if count == 0 && (op != "+=" || want != 0) {
		return fmt.Errorf("there is no such series; of this name: %s", describe(now.series(s.name, nil)))
	}
	if op == "+=" {
		if before == nil {
			return errors.New("nobody looked before the scenario")
		}
		old, _ := before.sum(s.name, s.labels)
		got -= old
	}
	if op == ">" && got <= want || op != ">" && got != want {
		return fmt.Errorf("it is %v", got)
	}
	return nil
}

func describe(all []sample) string {
	var b strings.Builder
	for _, s := range all[max(0, len(all)-3):] {
		fmt.Fprintf(&b, "%v %v; ", s.labels, s.value)
	}
	return b.String()
}

// labelsVerb: labels node series : "name name..." looks at the labels of every
// such series, and their order.
func labelsVerb(r *reader) action {
	node, series := r.node(), readSeries(r)
	r.want(":")
	want := strings.Fields(r.text("names of labels"))
	return func(ctx context.Context, p *player) error {
		name, with, err := series(p)
		if err != nil {
			return err
		}
		return eventually(ctx, func() error {
			now, err := p.scrape(ctx, node)
			if err != nil {
				return err
			}
			found := now.series(name, with)
			if len(found) == 0 {
				return errors.New("there is no such series")
			}
			for _, s := range found {
				var got []string
				for _, l := range s.labels {
					got = append(got, l.name)
				}
				if !slices.Equal(got, want) {
					return fmt.Errorf("the labels are %q", got)
				}
			}
			return nil
		})
	}
}
