# The base image where none can be pulled; base.tar is made by debian.py.
FROM scratch
ADD base.tar /
ENV LANG=C.UTF-8 \
    PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
