{{/* Contradictions that a schema cannot see. Each message names the values and the fix. */}}
{{- define "ebbtide.validate" -}}
{{- $fullname := include "ebbtide.fullname" . -}}
{{- if not (kindIs "string" (index (printf "name: %s" $fullname | fromYaml) "name")) -}}
{{- fail (printf "fullnameOverride: the resources would be called %s, which YAML takes for no text; set another name" $fullname) -}}
{{- end -}}
{{- $selecting := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- /* Pods carry none of these of the chart's: who adds them there replaces nothing. */ -}}
{{- $telling := list "app.kubernetes.io/version" "app.kubernetes.io/part-of" "app.kubernetes.io/managed-by" "helm.sh/chart" -}}
{{- range $field, $labels := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels "etcd.podLabels" .Values.etcd.podLabels -}}
{{- range $label, $_ := $labels -}}
{{- if or (has $label $selecting) (and (eq $field "commonLabels") (has $label $telling)) -}}
{{- fail (printf "%s: %s is the chart's own, by which its parts are found; leave it out" $field $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $field, $longest := dict "drainTimeout" "24h" "cancelGrace" "10m" "quiesce" "5m" -}}
{{- if gt (include "ebbtide.seconds" (index $.Values.defaults $field) | float64) (include "ebbtide.seconds" $longest | float64) -}}
{{- fail (printf "defaults.%s: must be %s at most, not %s" $field $longest (index $.Values.defaults $field)) -}}
{{- end -}}
{{- end -}}
{{- $external := .Values.etcd.external -}}
{{- $secure := 0 -}}
{{- range $external.endpoints -}}
{{- if hasPrefix "https://" . -}}{{- $secure = add1 $secure -}}{{- end -}}
{{- end -}}
{{- if $external.endpoints -}}
{{- if and (ne (int $secure) 0) (ne (int $secure) (len $external.endpoints)) -}}
{{- fail "etcd.external.endpoints: mixes http and https; use one of them for all" -}}
{{- end -}}
{{- if and $secure (not $external.tlsSecret) -}}
{{- fail "etcd.external.tlsSecret: is needed for https endpoints; name a Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- if and (not $secure) $external.tlsSecret -}}
{{- fail "etcd.external.tlsSecret: is set, but etcd.external.endpoints are plain http; use https:// or leave it empty" -}}
{{- end -}}
{{- if eq (toString .Values.etcd.persistence.enabled) "true" -}}
{{- fail "etcd.persistence.enabled: belongs to the embedded etcd, which etcd.external.endpoints replaces; leave one of them out" -}}
{{- end -}}
{{- else if or $external.tlsSecret $external.username $external.passwordSecret.name -}}
{{- fail "etcd.external: has credentials but no endpoints; set etcd.external.endpoints" -}}
{{- end -}}
{{- if and $external.username (not $external.passwordSecret.name) -}}
{{- fail "etcd.external.passwordSecret.name: is needed beside etcd.external.username" -}}
{{- end -}}
{{- if and $external.passwordSecret.name (not $external.username) -}}
{{- fail "etcd.external.username: is needed beside etcd.external.passwordSecret.name" -}}
{{- end -}}
{{- if and (include "ebbtide.etcd.embedded" .) (include "ebbtide.etcd.persistent" .) -}}
{{- $needed := add (int64 .Values.etcd.quotaBytes) (include "ebbtide.etcd.besidesBytes" . | int64) -}}
{{- if lt (include "ebbtide.bytes" .Values.etcd.persistence.size | int64) $needed -}}
{{- fail (printf "etcd.persistence.size: %v is too small for etcd.quotaBytes, which needs 512Mi more than itself: at least %sMi; docs/store.md says how to enlarge an installed one" .Values.etcd.persistence.size (include "ebbtide.mebibytes" $needed)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.egress.enabled (not .Values.networkPolicy.enabled) -}}
{{- fail "networkPolicy.egress.enabled: needs networkPolicy.enabled" -}}
{{- end -}}
{{- if not .Values.allowSecondRelease -}}
{{- range (lookup "admissionregistration.k8s.io/v1" "ValidatingWebhookConfiguration" "" "").items -}}
{{- $labels := default dict .metadata.labels -}}
{{- $annotations := default dict .metadata.annotations -}}
{{- $release := index $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" -}}
{{- if and (eq (toString (index $labels "app.kubernetes.io/part-of")) "ebbtide") $release -}}
{{- if or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace) -}}
{{- fail (printf "release %s in namespace %s is Ebbtide already: two operators would plan the same workloads; uninstall it, or set allowSecondRelease while you move" $release $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
