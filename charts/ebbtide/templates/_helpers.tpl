{{/* Room is left for the longest suffix (`-etcd-server-tls`) and for what StatefulSets append to a pod's labels. */}}
{{- define "ebbtide.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ebbtide.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "ebbtide.fullname" . -}}
{{- else -}}
{{- fail "serviceAccount.name: is needed where serviceAccount.create is false; name the ServiceAccount to use" -}}
{{- end -}}
{{- end -}}

{{/* Several dicts as one, in YAML that keeps all of it text; of a name that several have, the last value. */}}
{{- define "ebbtide.union" -}}
{{- $all := dict -}}
{{- range . -}}
{{- range $name, $value := . -}}
{{- $_ := set $all $name $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* Labels by which Services, policies and workloads find their pods: never changed in a release's life. */}}
{{- define "ebbtide.selectorLabels" -}}
{{- $name := default .root.Chart.Name .root.Values.nameOverride | trunc 63 -}}
{{- $labels := dict "app.kubernetes.io/name" $name "app.kubernetes.io/instance" .root.Release.Name -}}
{{- include "ebbtide.union" (list $labels (dict "app.kubernetes.io/component" .component)) -}}
{{- end -}}

{{/* Labels of an object: (dict "root" $ "component" <component> "more" <labels of its own, which win over commonLabels>). */}}
{{- define "ebbtide.labels" -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- $own := dict "app.kubernetes.io/part-of" "ebbtide" "app.kubernetes.io/managed-by" .root.Release.Service "helm.sh/chart" $chart -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- include "ebbtide.union" (list (include "ebbtide.selectorLabels" . | fromYaml) $own .root.Values.commonLabels .more) -}}
{{- end -}}

{{/* Labels of a pod, with the same arguments. Without the chart's version: an upgrade that changes nothing in a pod restarts none. */}}
{{- define "ebbtide.podLabels" -}}
{{- include "ebbtide.union" (list (include "ebbtide.selectorLabels" . | fromYaml) .root.Values.commonLabels .more) -}}
{{- end -}}

{{/* Annotations of a pod: (dict "root" $ "container" <its main one> "port" <of its metrics> "more" <annotations that win>). */}}
{{- define "ebbtide.podAnnotations" -}}
{{- $scrape := dict -}}
{{- if not (include "ebbtide.serviceMonitor" .root) -}}
{{- $scrape = dict "prometheus.io/scrape" "true" "prometheus.io/port" .port "prometheus.io/path" "/metrics" -}}
{{- end -}}
{{- include "ebbtide.union" (list (dict "kubectl.kubernetes.io/default-container" .container) $scrape .more) -}}
{{- end -}}

{{- define "ebbtide.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- $tag := default .default .image.tag | required "etcd.image.tag: is needed where etcd.image.digest is empty" -}}
{{- printf "%s:%s" .image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- define "ebbtide.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ebbtide.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* "true" where the chart runs its own etcd. */}}
{{- define "ebbtide.etcd.embedded" -}}
{{- if not .Values.etcd.external.endpoints }}true{{ end -}}
{{- end -}}

{{- define "ebbtide.etcd.endpoints" -}}
{{- if include "ebbtide.etcd.embedded" . -}}
https://{{ include "ebbtide.fullname" . }}-etcd.{{ .Release.Namespace }}.svc:2379
{{- else -}}
{{- join "," .Values.etcd.external.endpoints -}}
{{- end -}}
{{- end -}}

{{/*
"true" where the embedded etcd has a volume. volumeClaimTemplates cannot be changed: an installed StatefulSet keeps what `auto`
chose at first, also where a default StorageClass came or went since.
*/}}
{{- define "ebbtide.etcd.persistent" -}}
{{- $wanted := toString .Values.etcd.persistence.enabled -}}
{{- if eq $wanted "true" -}}
true
{{- else if eq $wanted "auto" -}}
{{- $installed := lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-etcd" (include "ebbtide.fullname" .)) -}}
{{- if $installed -}}
{{- if $installed.spec.volumeClaimTemplates }}true{{ end -}}
{{- else if .Values.etcd.persistence.storageClass -}}
true
{{- else -}}
{{- $found := "" -}}
{{- range (lookup "storage.k8s.io/v1" "StorageClass" "" "").items -}}
{{- if eq (dig "annotations" "storageclass.kubernetes.io/is-default-class" "" .metadata) "true" -}}
{{- $found = "true" -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a Kubernetes quantity. */}}
{{- define "ebbtide.bytes" -}}
{{- $text := toString . -}}
{{- $suffix := regexFind "[A-Za-z]+$" $text -}}
{{- $factors := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- range $power, $name := list "Ki" "Mi" "Gi" "Ti" "Pi" "Ei" -}}
{{- $factor := 1024.0 -}}
{{- range until $power -}}{{- $factor = mulf $factor 1024.0 -}}{{- end -}}
{{- $_ := set $factors $name $factor -}}
{{- end -}}
{{- mulf (trimSuffix $suffix $text | float64) (get $factors $suffix) | int64 -}}
{{- end -}}

{{/* MiB that hold so many bytes. */}}
{{- define "ebbtide.mebibytes" -}}
{{- div (add . 1048575) 1048576 -}}
{{- end -}}

{{/* Seconds of a duration that the schema accepts: 90s, 5m, 1h30m, 500ms. */}}
{{- define "ebbtide.seconds" -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9.]+[a-z]+" . -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $seconds := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) $unit -}}
{{- $total = addf $total (mulf (trimSuffix $unit . | float64) $seconds) -}}
{{- end -}}
{{- $total -}}
{{- end -}}

{{/* Bytes that etcd takes on its disk beside the database: its log in segments of 64 MiB, of which it keeps five. */}}
{{- define "ebbtide.etcd.besidesBytes" -}}
{{- mul 512 1024 1024 -}}
{{- end -}}

{{/* Most that the embedded etcd may take of its node's disk, in MiB: room for a second file too, which defragmentation writes. */}}
{{- define "ebbtide.etcd.scratchMi" -}}
{{- $bytes := mul 2 (add (int64 .Values.etcd.quotaBytes) (include "ebbtide.etcd.besidesBytes" . | int64)) -}}
{{- include "ebbtide.mebibytes" $bytes -}}
{{- end -}}

{{/* "true" where a monitor of the Prometheus operator is rendered: (dict "root" $ "enabled" <auto|always|never> "kind" <kind>). */}}
{{- define "ebbtide.monitor" -}}
{{- if eq .enabled "always" -}}
true
{{- else if and (eq .enabled "auto") (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) -}}
true
{{- end -}}
{{- end -}}

{{- define "ebbtide.serviceMonitor" -}}
{{- include "ebbtide.monitor" (dict "root" . "enabled" .Values.monitoring.serviceMonitor.enabled "kind" "ServiceMonitor") -}}
{{- end -}}
