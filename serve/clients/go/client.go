// Package livetrain is a client of livetrain-serve and of Triton: the Open Inference Protocol v2 over HTTP, with binary
// tensors. It needs the standard library alone.
//
//	client := livetrain.NewClient("http://127.0.0.1:8080", 500*time.Millisecond)
//	request := (&livetrain.Request{}).
//		IDs("user", 17).Lists("history", []int64{4, 9}).     // the user's, one row
//		IDs("video", 31, 8).Numbers("length", 12.5, nan)     // a row per candidate
//	answer, err := client.Infer(ctx, "din", request)
//	answer.Scores["click"]
//
// Retries: a request is sent again once, and only where a connection that was kept open was closed by the server before
// it answered anything. Nothing is sent again after a timeout, a refusal or Busy.
package livetrain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const headerField = "Inference-Header-Content-Length"

// Refused says that the request is wrong: the same one will be refused again.
type Refused struct {
	Status   int
	Sentence string
}

func (e *Refused) Error() string { return e.Sentence }

// Busy says that the server has more to do than it can in time (HTTP 429 or 503): ask another, or later.
type Busy struct{ Sentence string }

func (e *Busy) Error() string { return e.Sentence }

// TimedOut says that there was no answer in time.
type TimedOut struct{ Cause error }

func (e *TimedOut) Error() string { return "no answer in time: " + e.Cause.Error() }
func (e *TimedOut) Unwrap() error { return e.Cause }

// Unreachable says that there was no connection, or one that broke, or an answer that is none.
type Unreachable struct{ Cause error }

func (e *Unreachable) Error() string { return "no answer: " + e.Cause.Error() }
func (e *Unreachable) Unwrap() error { return e.Cause }

// Client speaks to one server, from any number of goroutines, over connections that stay open.
type Client struct {
	url  string
	http http.Client
}

// NewClient takes the server's address, as http://host:8080, and how long a request may take in all.
func NewClient(address string, timeout time.Duration) *Client {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     60 * time.Second,
		DisableCompression:  true,
	}
	return &Client{strings.TrimRight(address, "/"), http.Client{Transport: transport, Timeout: timeout}}
}

// Infer scores candidates of one user, or rows, by a model.
func (c *Client) Infer(ctx context.Context, model string, request *Request) (*Answer, error) {
	return c.post(ctx, "/v2/models/"+url.PathEscape(model)+"/infer", request)
}

// Rank scores candidates by livetrain-serve's own ranking, with pre-rank and re-ranking where it has them.
func (c *Client) Rank(ctx context.Context, request *Request) (*Answer, error) {
	return c.post(ctx, "/rank", request)
}

// Retrieve finds the best items of livetrain-serve's index: Other["items"] and Scores["score"], best first.
func (c *Client) Retrieve(ctx context.Context, request *Request) (*Answer, error) {
	return c.post(ctx, "/retrieve", request)
}

// Ready says whether the server is there and ready to score.
func (c *Client) Ready(ctx context.Context) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/v2/health/ready", nil)
	if err != nil {
		return false
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

func (c *Client) post(ctx context.Context, path string, given *Request) (*Answer, error) {
	body, header, err := given.Encode()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	request.Header.Set(headerField, strconv.Itoa(header))
	request.Header["Idempotency-Key"] = nil // net/http's sign that a POST may be sent again on a connection that was closed
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, failed(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, failed(err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, complaint(answer.StatusCode, content)
	}
	length := -1
	if field := answer.Header.Get(headerField); field != "" {
		if length, err = strconv.Atoi(field); err != nil || length < 0 {
			return nil, &Unreachable{fmt.Errorf("%s is %q", headerField, field)}
		}
	}
	found, err := Decode(content, length)
	if err != nil {
		return nil, &Unreachable{err}
	}
	return found, nil
}

func failed(err error) error {
	var timed interface{ Timeout() bool }
	if errors.As(err, &timed) && timed.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return &TimedOut{err}
	}
	return &Unreachable{err}
}

func complaint(status int, content []byte) error {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(content, &said) != nil || said.Error == "" {
		said.Error = "status " + strconv.Itoa(status)
	}
	switch {
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return &Busy{said.Error}
	case status >= 400 && status < 500:
		return &Refused{status, said.Error}
	}
	return &Unreachable{errors.New(said.Error)}
}
